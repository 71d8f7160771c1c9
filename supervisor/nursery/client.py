"""The master's side of the nursery: starts it, asks it for children, hears of their deaths.

The nursery is spawned with posix_spawn(3), which runs no fork handlers: those of gRPC would hang or crash
in a master with live channels.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable

import msgspec

from garrison.supervisor.cgroups.base import KillPlan
from garrison.supervisor.nursery import protocol

START_SECONDS = 20.0
"""How long a new nursery may take to say hello; loading the worker code takes 0.2 s on an idle core."""
SPAWN_SECONDS = 10.0
"""How long the nursery may take to fork."""
REAP_SECONDS = 5.0
"""How long a killed nursery may take to disappear; one that hangs in the kernel is left to be reaped later."""
NURSERY_FD = 3


class NurseryError(Exception):
    """The nursery did not do what it was asked for; the text says what and why."""


class NurseryDiedError(NurseryError):
    """The nursery ended while it was asked: nobody's fault; the next one is asked again."""


class Child:
    """A worker's process as the nursery made it: waiting at its gate.

    Attributes:
        pid: Its process id.
        pidfd: A descriptor of the process, or None before Linux 5.3. The owner of this object closes it.
        exit: Done when the process is gone: with the nursery's report, or with None where the nursery died
            and took it along.
    """

    __slots__ = ("_nursery", "exit", "pid", "pidfd")

    def __init__(self, nursery: NurseryClient, pid: int, pidfd: int | None) -> None:
        self._nursery = nursery
        self.pid = pid
        self.pidfd = pidfd
        self.exit: asyncio.Future[protocol.Exited | None] = asyncio.get_running_loop().create_future()

    def signal(self, signo: signal.Signals) -> None:
        """Send a signal to exactly this process; one that has ended is no error."""
        if self.exit.done():
            return
        if self.pidfd is None:
            self._nursery.signal(self.pid, signo)
            return
        try:
            signal.pidfd_send_signal(self.pidfd, signo)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Give the pidfd back."""
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None


class NurseryClient:
    """One nursery process, from start to end. A dead one is replaced by a new client.

    Args:
        on_death: Called once when the nursery ends without having been asked to.
    """

    def __init__(self, on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._children: dict[int, Child] = {}
        self._sock: socket.socket | None = None
        self._hello: asyncio.Future[None] | None = None
        self._inspected: asyncio.Future[protocol.Inspected] | None = None
        self._pending: dict[int, asyncio.Future[Child]] = {}
        self._next_id = 0
        self._reaped = asyncio.Event()
        self.pid = 0

    @property
    def alive(self) -> bool:
        """True from the start until its socket closes."""
        return self._sock is not None

    async def start(self, plan: KillPlan, preload: tuple[str, ...]) -> None:
        """Start the interpreter and wait until it is ready to fork.

        Args:
            plan: How the nursery kills the ``workers`` node when this master is gone.
            preload: Modules that it imports ahead, for its children to share.

        Raises:
            NurseryError: It could not be started, or did not say hello in time.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise NurseryError(f"the nursery cannot be started: no socket for it: {error.strerror}") from error
        ours.setblocking(False)
        argv = [sys.executable, "-I", "-m", "garrison.supervisor.nursery", str(NURSERY_FD)]
        try:
            # A duplicate onto its own number would stay close-on-exec: go by a number that cannot be 3.
            high = os.dup(theirs.fileno()) if theirs.fileno() == NURSERY_FD else theirs.fileno()
            try:
                self.pid = os.posix_spawn(  # noqa: ASYNC221  vfork and exec: a millisecond
                    sys.executable,
                    argv,
                    {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
                    file_actions=[(os.POSIX_SPAWN_DUP2, high, NURSERY_FD)],
                    setsigmask=(),
                )
            finally:
                if high != theirs.fileno():
                    os.close(high)
        except OSError as error:
            ours.close()
            raise NurseryError(f"the nursery cannot be started: {sys.executable}: {error.strerror}") from error
        finally:
            theirs.close()
        self._sock = ours
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        loop.add_reader(ours, self._readable)
        try:
            protocol.send(
                ours,
                protocol.Setup(
                    kill_files=plan.kill_files,
                    freezer=plan.freezer,
                    procs_dirs=plan.procs_dirs,
                    quota_files=plan.quota_files,
                    preload=preload,
                ),
            )
            await asyncio.wait_for(asyncio.shield(self._hello), START_SECONDS)
        except TimeoutError as error:
            self.kill()
            raise NurseryError(f"the nursery (pid {self.pid}) did not answer within {START_SECONDS:.0f} s") from error
        except OSError as error:
            self.kill()
            raise NurseryDiedError(f"the nursery (pid {self.pid}) died at its start") from error

    async def spawn(self, request: protocol.Spawn, fds: tuple[int, int, int, int]) -> Child:
        """Fork a worker that waits at its gate. The descriptors stay the caller's to close.

        Raises:
            NurseryError: The fork was refused, or the nursery died or hangs.
        """
        if self._sock is None:
            raise NurseryDiedError("there is no nursery")
        self._next_id += 1
        request.id = self._next_id
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._pending[request.id] = future
        try:
            protocol.send(self._sock, request, fds)
            return await asyncio.wait_for(future, SPAWN_SECONDS)
        except TimeoutError as error:
            self.kill()
            raise NurseryError(f"the nursery did not fork {request.worker} within {SPAWN_SECONDS:.0f} s") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NurseryDiedError(f"the nursery (pid {self.pid}) died") from error
        except (OSError, ValueError) as error:
            raise NurseryError(f"the nursery cannot be asked to fork {request.worker}: {error}") from error
        finally:
            self._pending.pop(request.id, None)

    async def inspect(self) -> protocol.Inspected:
        """Return what the nursery says about itself.

        Raises:
            NurseryError: There is none, or it does not answer.
        """
        if self._sock is None:
            raise NurseryError("there is no nursery")
        self._inspected = asyncio.get_running_loop().create_future()
        protocol.send(self._sock, protocol.Inspect())
        try:
            return await asyncio.wait_for(self._inspected, SPAWN_SECONDS)
        except TimeoutError as error:
            raise NurseryError("the nursery does not answer") from error

    def signal(self, pid: int, signo: signal.Signals) -> None:
        """Have the nursery signal one of its unreaped children."""
        if self._sock is not None:
            try:
                protocol.send(self._sock, protocol.Signal(pid, signo))
            except OSError:
                self._lost()

    def kill(self) -> None:
        """SIGKILL the nursery, for one that hangs; `on_death` follows."""
        if self.pid and not self._reaped.is_set():
            os.kill(self.pid, signal.SIGKILL)

    def reaped(self) -> None:
        """Tell that the master has reaped this nursery's pid."""
        self._reaped.set()
        # What it still had to say is in the socket; end of file may be late, since a child at its gate holds a copy.
        while self._receive():
            continue
        self._lost()

    async def stop(self, timeout: float = 2.0) -> bool:
        """End the nursery: it kills what is left in the ``workers`` node and exits. Then it is reaped.

        Args:
            timeout: Seconds until it is killed.

        Returns:
            False where even the killed one does not disappear.
        """
        if not self.pid:
            return True
        self._on_death = _nothing
        self._lost()
        try:
            await asyncio.wait_for(self._reaped.wait(), timeout)
            return True
        except TimeoutError:
            self.kill()
        try:
            await asyncio.wait_for(self._reaped.wait(), REAP_SECONDS)
        except TimeoutError:
            return False
        return True

    def _readable(self) -> None:
        # Bounded per turn: a burst of exits must not keep the loop from the killswitch.
        for _ in range(64):
            if not self._receive():
                return

    def _receive(self) -> bool:
        """Take one message. False: there is none, or there will be no more."""
        if self._sock is None:
            return False
        try:
            data, fds = protocol.receive(self._sock)
        except BlockingIOError:
            return False
        except OSError:
            # Out of descriptors: the pidfd of a child did not come through, and a message is lost with it.
            data, fds = b"", []
        if not data:
            self._lost()
            return False
        try:
            self._handle(protocol.decode_from_nursery(data), fds)
        except msgspec.MsgspecError:
            # Cannot come from our own code; what cannot be understood is replaced.
            for fd in fds:
                os.close(fd)
            self.kill()
            return False
        return True

    def _handle(self, message: protocol.FromNursery, fds: list[int]) -> None:
        if isinstance(message, protocol.Exited):
            ended = self._children.pop(message.pid, None)
            if ended is not None:
                ended.exit.set_result(message)
        elif isinstance(message, protocol.Spawned):
            child = self._children[message.pid] = Child(self, message.pid, fds[0] if fds else None)
            future = self._pending.get(message.id)
            if future is None or future.done():
                # Asked for by a start that was given up: its gate is closed, it exits by itself.
                child.close()
            else:
                future.set_result(child)
        elif isinstance(message, protocol.Refused):
            future = self._pending.get(message.id)
            if future is not None and not future.done():
                future.set_exception(NurseryError(message.error))
        elif isinstance(message, protocol.Hello):
            if self._hello is not None and not self._hello.done():
                self._hello.set_result(None)
        elif self._inspected is not None and not self._inspected.done():
            self._inspected.set_result(message)

    def _lost(self) -> None:
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        error = NurseryDiedError(f"the nursery (pid {self.pid}) died")
        for future in (self._hello, self._inspected, *self._pending.values()):
            if future is not None and not future.done():
                future.set_exception(error)
                future.exception()  # seen: nobody may be waiting any more
        for child in self._children.values():
            child.exit.set_result(None)
        self._children.clear()
        self._on_death()


def _nothing() -> None:
    return
