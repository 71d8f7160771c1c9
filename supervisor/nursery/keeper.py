"""Keeps one nursery alive for as long as workers may run, and reaps what comes to the master."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from garrison.ipc.pacing import backoff
from garrison.supervisor.cgroups.base import KillPlan
from garrison.supervisor.nursery.client import NurseryClient, NurseryDiedError, NurseryError

RETRY_BASE_SECONDS = 1.0
RETRY_CAP_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A nursery that lived this long was fine: the next one is started at once."""


class NurseryKeeper:
    """Starts a nursery when one is asked for, and a new one when the old one has died.

    Args:
        host: Host name, for the jitter.
        plan: Returns how a nursery kills the ``workers`` node.
        preload: Modules that it loads ahead.
        on_lost: Called when a nursery died unasked, before the workers hear of it anew: kills what it left.
        log: Writes a warning.
    """

    def __init__(
        self,
        host: str,
        plan: Callable[[], KillPlan],
        preload: tuple[str, ...],
        on_lost: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._host = host
        self._plan = plan
        self._preload = preload
        self._on_lost = on_lost
        self._log = log
        self._client: NurseryClient | None = None
        self._unreaped: list[NurseryClient] = []
        self._lock = asyncio.Lock()
        self._failures = 0
        self._started_at = 0.0
        self._waiting: asyncio.Task[NurseryClient] | None = None
        self._interruptions = 0
        self._closed = False
        self.replaced = 0

    @property
    def pid(self) -> int:
        """Process id of the living nursery, or 0."""
        return self._client.pid if self._client is not None and self._client.alive else 0

    @property
    def client(self) -> NurseryClient | None:
        """The living nursery, or None."""
        return self._client if self._client is not None and self._client.alive else None

    async def get(self) -> NurseryClient:
        """Return a living nursery; starts one where there is none, after a wait where the last ones failed.

        Raises:
            NurseryDiedError: The wait or the start was interrupted, or the new one died at once.
            NurseryError: It could not be started.
        """
        interruptions = self._interruptions
        async with self._lock:
            if self._closed:
                raise NurseryDiedError("the agent is stopping")
            if interruptions != self._interruptions:
                # Meant for everybody who was waiting, not only for whoever came first.
                raise NurseryDiedError("its start was interrupted")
            if self._client is not None and self._client.alive:
                return self._client
            self._waiting = asyncio.get_running_loop().create_task(self._start(), name="nursery")
            try:
                # Not awaited itself: what cancels it is an interruption, and no cancellation of the caller.
                await asyncio.wait((self._waiting,))
                if self._waiting.cancelled():
                    raise NurseryDiedError("its start was interrupted")
                return self._waiting.result()
            finally:
                self._waiting.cancel()
                self._waiting = None

    def interrupt(self) -> None:
        """Give up a start, and the wait ahead of one: the killswitch is engaged, or the agent stops."""
        self._interruptions += 1
        if self._waiting is not None:
            self._waiting.cancel()

    async def stop(self) -> None:
        """End the nursery; what is left of the workers goes with it."""
        self.interrupt()
        async with self._lock:
            if self._client is not None:
                client, self._client = self._client, None
                if not await client.stop():
                    self._log(f"the nursery (pid {client.pid}) was killed and does not end: look at /proc/PID/stack")

    async def close(self) -> None:
        """End the nursery for good: nobody gets another one."""
        self._closed = True
        await self.stop()

    async def _start(self) -> NurseryClient:
        loop = asyncio.get_running_loop()
        if self._failures:
            wait = backoff(
                self._failures - 1, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS, identity=(self._host, "nursery")
            )
            await asyncio.sleep(max(0.0, self._started_at + wait - loop.time()))
        client = self._client = NurseryClient(self._died)
        self._unreaped.append(client)
        self._started_at = loop.time()
        try:
            await client.start(self._plan(), self._preload)
        except NurseryDiedError:
            raise  # counted when its death was noticed
        except NurseryError:
            self._failures += 1
            raise
        except asyncio.CancelledError:
            # It has no children yet. Its death is expected, so nobody is told.
            await client.stop(0.0)
            raise
        finally:
            if not client.pid:
                self._unreaped.remove(client)
        return client

    def reap(self) -> None:
        """Collect every dead child of the master: the nursery, and orphans that came to it as subreaper."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for client in self._unreaped:
                if client.pid == pid:
                    client.reaped()
                    self._unreaped.remove(client)
                    break

    def _died(self) -> None:
        lived = asyncio.get_running_loop().time() - self._started_at
        # One that had been stable is replaced at once, and so is the first; one that keeps dying later and later.
        self._failures = 0 if lived >= STABLE_SECONDS or not self.replaced else self._failures + 1
        self.replaced += 1
        self._log(f"the nursery died after {lived:.1f} s; all workers are started again, uncounted")
        self._on_lost()
