"""A real control server in a thread, with a handler that answers what a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from garrison.supervisor.control.protocol import ControlError, unknown_worker
from garrison.supervisor.control.server import ControlLimits, ControlServer, Peer

DEADLINE = 30.0


class Answers:
    """A handler: `results` by operation (a value, an exception, or a callable of the arguments)."""

    def __init__(self, **results: Any) -> None:
        self.results: dict[str, Any] = results
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.peers: list[Peer] = []
        self.closed_streams = threading.Semaphore(0)

    async def __call__(self, op: str, args: dict[str, Any], peer: Peer) -> object | AsyncIterator[object]:
        self.calls.append((op, args))
        self.peers.append(peer)
        result = self.results[op]
        if callable(result):
            result = result(**args)
        if asyncio.iscoroutine(result):
            result = await result
        if isinstance(result, Exception):
            raise result
        return result

    async def items(self, *values: object, then: str = "end") -> AsyncIterator[object]:
        """A stream of these; then it ends, waits for ever, or raises."""
        try:
            for value in values:
                yield value
            if then == "wait":
                await asyncio.Event().wait()
            if then == "raise":
                raise ControlError("the tap is gone", "turn it on", "tap")
            if then == "crash":
                raise RuntimeError("secret detail")
        finally:
            self.closed_streams.release()


class RunningServer:
    """The server's thread, seen from the test's."""

    def __init__(self, server: ControlServer, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.loop = loop

    def run(self, call: Callable[[], Any]) -> Any:
        """Run something on the server's loop and return its outcome."""

        async def on_loop() -> Any:
            result = call()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(on_loop(), self.loop).result(DEADLINE)

    def close(self) -> None:
        """Close the server as the master does when it stops."""
        self.run(self.server.close)


@contextmanager
def serving(
    path: str, handler: Any, *, allowed_uids: set[int] | None = None, limits: ControlLimits | None = None
) -> Iterator[RunningServer]:
    """Serve a socket until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="control-server")
    thread.start()
    try:

        async def make() -> ControlServer:
            server = ControlServer(path, handler, allowed_uids, limits=limits)
            await server.start()
            return server

        running = RunningServer(asyncio.run_coroutine_threadsafe(make(), loop).result(DEADLINE), loop)
        try:
            yield running
        finally:
            running.close()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def worker_unknown(worker: str) -> ControlError:
    return unknown_worker(worker, ["process", "network", "files"])
