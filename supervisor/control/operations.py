"""What the control socket's operations do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from garrison.supervisor import logs
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.control.protocol import ControlError, Dropped, VersionResult, unknown_worker
from garrison.supervisor.control.server import Peer
from garrison.supervisor.control.status import HistoryEntry, HistoryReport, KillswitchResult, WorkerResult
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.state import LOCAL_FILE
from garrison.supervisor.version import VERSION

if TYPE_CHECKING:
    from garrison.supervisor.agent import Agent
    from garrison.supervisor.worker.supervisor import WorkerSupervisor

SETTLE_SECONDS = 15.0
"""How long an operation waits for a worker to reach what was asked for."""
EMPTY_SECONDS = 10.0
STEP_SECONDS = 0.001
SAVE_SECONDS = 2.0
SUBSCRIBER_BATCHES = 256
"""Batches that may wait for one ``events -f``; more are dropped and counted for it."""

_log = logs.get("control")


class Operations:
    """Carries out the requests of operators on this host.

    Args:
        agent: The agent that is steered.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def __call__(self, op: str, args: dict[str, Any], peer: Peer) -> object | AsyncIterator[object]:
        """Carry out one request.

        Raises:
            ControlError: It could not be; the text says why.
        """
        if op == "status":
            return self._agent.status()
        if op == "version":
            return VersionResult(VERSION)
        if op == "events":
            return self._events(**args)
        if op == "history":
            return self._history(**args)
        who = f"uid {peer.uid}, pid {peer.pid}"
        _log.notice("%s asked for by %s: %s", op, who, args)
        if op == "kill":
            return await self._kill(args["reason"], who)
        if op == "release":
            return await self._release()
        return await self._steer(op, self._worker(args["worker"]))

    def _worker(self, name: str) -> WorkerSupervisor:
        worker = self._agent.workers.get(name)
        if worker is None:
            raise unknown_worker(name, self._agent.workers)
        return worker

    def _history(self, worker: str, last: int) -> HistoryReport:
        history = self._agent.remembering.history
        if worker and not history.knows(worker):
            self._worker(worker)  # one that never was is an error, one to which nothing has happened is not
        entries = history.last(worker or None, last)
        return HistoryReport(entries=[HistoryEntry(**msgspec.structs.asdict(entry)) for entry in entries])

    async def _steer(self, op: str, worker: WorkerSupervisor) -> WorkerResult:
        agent, name = self._agent, worker.name
        if op == "reset":
            worker.reset()
        elif op == "thaw":
            if agent.reconciler.overrides.get(name) == "freeze":
                agent.override(name, None)
        else:
            agent.override(name, None if op == "start" else "freeze" if op == "freeze" else "stop")
        settled = await worker.settle(SETTLE_SECONDS)
        message = "" if settled else f"not settled after {SETTLE_SECONDS:.0f} s"
        if op != "reset":
            message = "; ".join(filter(None, (message, await self._saved())))
        return WorkerResult(
            name=name,
            state=worker.state.value,
            desired=worker.desired.action,
            desired_by=worker.desired.decided_by,
            message=message,
        )

    async def _kill(self, reason: str, who: str) -> KillswitchResult:
        agent = self._agent
        begin = asyncio.get_running_loop().time()
        # Nothing comes before the kill that could fail: not even counting.
        processes = len(self._members() or ())
        agent.killswitch.engage_local(reason, by=who)
        deadline = begin + EMPTY_SECONDS
        # The kernel offers no event for "every hierarchy is empty": a look each millisecond, for milliseconds.
        while (left := self._members()) != [] and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(STEP_SECONDS)
        milliseconds = 1000.0 * (asyncio.get_running_loop().time() - begin)
        if left is None:
            raise ControlError(
                "the killswitch is engaged, but whether any process is left cannot be read",
                "look at the agent's log, and at the limit of open files",
            )
        if left:
            raise ControlError(
                f"the killswitch is engaged, but these processes are still there: {left[:10]}",
                "they hang in the kernel; look at /proc/PID/stack",
            )
        await self._settle_all()
        return self._killswitch(milliseconds, processes, await self._saved())

    async def _release(self) -> KillswitchResult:
        agent = self._agent
        begin = asyncio.get_running_loop().time()
        agent.killswitch.release_local()
        # An operator at this host means now: the spread is for what a whole fleet hears at once.
        while (pending := agent.killswitch.pending) is not None and not agent.confirm_release(pending.ticket):  # noqa: ASYNC110
            await asyncio.sleep(STEP_SECONDS)  # a kill is still being carried out
        milliseconds = 1000.0 * (asyncio.get_running_loop().time() - begin)
        if not agent.killswitch.engaged:
            await self._settle_all()
        return self._killswitch(milliseconds, 0, await self._saved())

    def _members(self) -> list[int] | None:
        """Return every process of every worker; None where that cannot be read."""
        try:
            return list(self._agent.cgroups.members(None))
        except CgroupError as error:
            _log.error("%s", error)
            return None

    async def _settle_all(self) -> None:
        await asyncio.gather(*(worker.settle(SETTLE_SECONDS) for worker in self._agent.workers.values()))

    def _killswitch(self, milliseconds: float, processes: int, message: str) -> KillswitchResult:
        described = self._agent.status().agent.killswitch
        return KillswitchResult(
            engaged=described.engaged,
            scopes=described.scopes,
            reason=described.reason,
            milliseconds=round(milliseconds, 3),
            processes=processes,
            message=message,
        )

    async def _saved(self) -> str:
        """Wait for the decision to be on disk; returns "" or what is wrong with that."""
        try:
            return await asyncio.to_thread(self._agent.remembering.writer.settle, LOCAL_FILE, SAVE_SECONDS)
        except RuntimeError as error:
            return f"whether the decision is on disk is not known: {error}"

    async def _events(self, follow: bool, last: int, kinds: list[str], workers: list[str]) -> AsyncIterator[object]:
        queue: asyncio.Queue[Batch | None] = asyncio.Queue(SUBSCRIBER_BATCHES)
        dropped, over = 0, False

        def take(batch: Batch) -> None:
            nonlocal dropped
            try:
                queue.put_nowait(batch)
            except asyncio.QueueFull:
                dropped += batch.count

        def end() -> None:
            nonlocal over
            over = True
            if queue.empty():
                queue.put_nowait(None)

        def wanted(batch: Batch) -> bool:
            return (not kinds or batch.priority in kinds) and (not workers or batch.about in workers)

        tap = self._agent.way_out.pipeline.tap
        if tap.closed:
            raise _too_busy()
        unsubscribe = tap.subscribe(take, end) if follow else None
        try:
            lines: list[bytes] = []
            for batch in tap.recent():
                if wanted(batch):
                    lines += batch.data.splitlines()
            for line in lines[-last:] if last else []:
                yield line
            while follow:
                if over and queue.empty():
                    raise _too_busy()
                taken = await queue.get()
                if taken is None:
                    raise _too_busy()
                if dropped:
                    count, dropped = dropped, 0
                    yield Dropped(count)
                if wanted(taken):
                    for line in taken.data.splitlines():
                        yield line
        finally:
            if unsubscribe is not None:
                unsubscribe()


def _too_busy() -> ControlError:
    return ControlError(
        "the agent uses more than its own share and shows no live events now",
        "`garrison status` says why; the events go on to the sink",
        "busy",
    )
