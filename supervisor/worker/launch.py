"""Starting one worker process: node and caps, pipes, fork, placement, verification, killswitch, gate.

The order is the promise: no instruction of worker code runs outside its cgroup, under caps that did not
read back, or after the killswitch was engaged.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from garrison.ipc.messages import Config
from garrison.supervisor.cgroups.base import Cgroups, Limits
from garrison.supervisor.cgroups.errors import CgroupError, PlacementError
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.nursery.child import AT_THE_GATE
from garrison.supervisor.nursery.client import NurseryClient, NurseryDiedError
from garrison.supervisor.nursery.protocol import Spawn
from garrison.supervisor.worker.process import Listener, WorkerProcess

AT_GATE_SECONDS = 1.0
"""How long the child may take to get into its cgroup by itself. Under an exhausted aggregate quota it may be stopped
on the way; then it is moved, as it is where that does not work at all."""
PIPE_BYTES = 256 * 1024
"""Size of the events pipe, bytes; what the kernel refuses stays at its default of 64 KiB."""


class KilledError(Exception):
    """The killswitch was engaged before the gate was opened: nothing was started."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers are put, and the lock that a kill from another thread takes too.

    Attributes:
        cgroups: The tree.
        lock: Held around create-place-verify-open and around every kill.
        generation: Returns a number that every engagement of the killswitch raises.
        engaged: Returns whether the killswitch is engaged.
        restore: Puts the aggregate caps back where a kill has lifted them. Called with the lock held.
    """

    cgroups: Cgroups
    lock: threading.Lock
    generation: Callable[[], int]
    engaged: Callable[[], bool]
    restore: Callable[[], None]


async def launch(
    request: Spawn,
    limits: Limits,
    nofile: int,
    config: Config,
    *,
    place: Place,
    nursery: NurseryClient,
    epoch: int,
    ledger: WorkerLedger,
    listener: Listener,
    congested: Callable[[], bool],
) -> WorkerProcess:
    """Start a worker process and return it with its gate open and its first configuration on the way.

    Raises:
        KilledError: The killswitch is engaged, or was meanwhile.
        CgroupError: The node, a cap or the placement failed; nothing runs.
        FrameTooLargeError: The configuration does not fit a frame.
        NurseryDiedError: The nursery died meanwhile, and the child with it.
        NurseryError: The fork failed.
        OSError: The host is out of descriptors or pipes.
    """
    generation = place.generation()

    def killed() -> bool:
        return place.engaged() or place.generation() != generation

    with place.lock:
        if place.engaged():
            raise KilledError
        place.restore()
        place.cgroups.create(request.worker, limits)
    pipes = _Pipes()
    try:
        request.rlimits = ((resource.RLIMIT_NOFILE, nofile, nofile), *request.rlimits)
        entry = place.cgroups.entry(request.worker)
        request.born_in, request.tasks = entry.born_in, entry.tasks
        child = await nursery.spawn(request, pipes.for_child())
        gate = pipes.keep("gate")
        process = WorkerProcess(
            child=child,
            epoch=epoch,
            gate=gate,
            config=pipes.keep("config"),
            events=pipes.keep("events"),
            output=pipes.keep("output"),
            ledger=ledger,
            listener=listener,
            on_hang=nursery.kill,
            congested=congested,
            killed=killed,
        )
    finally:
        pipes.close()
    try:
        if request.tasks:
            await _at_gate(gate, AT_GATE_SECONDS)
        with place.lock:
            process.limit(config.events_per_second)
            try:
                place.cgroups.place(request.worker, process.pid)
            except CgroupError:
                if killed():
                    raise KilledError from None
                raise
            if killed():
                raise KilledError
            process.down.configure(config)
            try:
                process.open_gate()
            except BrokenPipeError as error:
                raise PlacementError(f"pid {process.pid} of worker {request.worker} died at its gate") from error
    except BaseException as error:
        # A closed gate lets the child exit by itself, wherever it is by now.
        process.close()
        if isinstance(error, (CgroupError, OSError)) and not nursery.alive:
            raise NurseryDiedError(f"the nursery died during the start: {error}") from error
        raise
    return process


async def _at_gate(gate: int, seconds: float) -> None:
    """Wait until a child says that it has done what it can to get into its cgroup, or is gone, or so many seconds."""
    loop = asyncio.get_running_loop()
    said = asyncio.Event()
    loop.add_reader(gate, said.set)
    try:
        async with asyncio.timeout(seconds):
            await said.wait()
        os.read(gate, len(AT_THE_GATE))
    except (TimeoutError, ConnectionResetError):
        return  # who looks at its place next finds out
    finally:
        loop.remove_reader(gate)


class _Pipes:
    """The four pipes of a start; whatever nobody took over is closed at the end."""

    def __init__(self) -> None:
        self._theirs: dict[str, int] = {}
        self._ours: dict[str, int] = {}
        try:
            for name, child_reads in (("config", True), ("events", False), ("output", False)):
                read, write = os.pipe2(os.O_CLOEXEC)
                self._theirs[name], self._ours[name] = (read, write) if child_reads else (write, read)
                os.set_blocking(self._ours[name], False)
            # Both ways: the child says when it has come there.
            theirs, ours = socket.socketpair()
            self._theirs["gate"], self._ours["gate"] = theirs.detach(), ours.detach()
            try:
                fcntl.fcntl(self._ours["events"], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            except PermissionError:
                # The user's share of pipe pages is used up: smaller works too.
                return
        except OSError:
            self.close()
            raise

    def for_child(self) -> tuple[int, int, int, int]:
        return (self._theirs["config"], self._theirs["events"], self._theirs["output"], self._theirs["gate"])

    def keep(self, name: str) -> int:
        return self._ours.pop(name)

    def close(self) -> None:
        for fd in (*self._theirs.values(), *self._ours.values()):
            os.close(fd)
        self._theirs.clear()
        self._ours.clear()
