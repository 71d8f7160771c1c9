"""TCP forwarders that a test can cut, so that a server seems to vanish from the network without any privilege."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

_CHUNK = 65536


class Wires:
    """Forwarders on loopback, all served by one thread.

    A cut wire swallows: what is sent through it gets lost without any answer, as on a network that drops packets, and
    a new connection through it is taken and never answered. Healing ends the connections that have lost something, so
    that both sides begin anew.

    Args:
        source_of: Names the side that has connected, given the port it comes from; only needed to cut by source.
    """

    def __init__(self, source_of: Callable[[int], str] = lambda _: "") -> None:
        self._source_of = source_of
        self._cut: set[str] = set()
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()

    def add(self, name: str, port: int, target: int) -> None:
        """Forward what comes to `port` to `target`, both on 127.0.0.1, until the wire `name` is cut."""

        async def serve() -> None:
            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                peer = writer.get_extra_info("peername")  # None: it has gone already
                link = _Link(name, self._source_of(peer[1]) if peer else "", reader, writer)
                task = asyncio.current_task()
                assert task is not None
                self._links.add(link)
                self._tasks.add(task)
                try:
                    await link.run(target, self._is_cut)
                except asyncio.CancelledError:
                    # From `close` only; the stream protocol would log it as an error.
                    pass
                finally:
                    self._links.discard(link)
                    self._tasks.discard(task)

            self._servers.append(await asyncio.start_server(accept, "127.0.0.1", port))

        self._call(serve())

    def cut(self, name: str) -> None:
        """Cut everything to and from `name`."""
        self._cut.add(name)

    def heal(self, name: str) -> None:
        """Let everything to and from `name` through again."""

        async def end() -> None:
            for link in list(self._links):
                if name in link.ends:
                    link.close()

        self._cut.discard(name)
        self._call(end())

    def close(self) -> None:
        """End all connections and the thread."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            # What was accepted becomes a link in the loop's next turns, and what is closed is closed by them.
            this, deadline = asyncio.current_task(), self._loop.time() + 5
            while len(asyncio.all_tasks() - {this}) > 0 and self._loop.time() < deadline:
                for task in self._tasks:
                    task.cancel()
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.1)

        if self._thread.is_alive():
            self._call(end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def _is_cut(self, link: _Link) -> bool:
        return not self._cut.isdisjoint(link.ends)

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class _Link:
    """One connection through a wire."""

    def __init__(self, name: str, source: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ends = frozenset({name, source})
        self._reader = reader
        self._writer = writer
        self._far: asyncio.StreamWriter | None = None

    async def run(self, target: int, is_cut: Callable[[_Link], bool]) -> None:
        """Forward until an end closes."""
        try:
            if is_cut(self):
                while await self._reader.read(_CHUNK):
                    pass
                return
            reader, self._far = await asyncio.open_connection("127.0.0.1", target)
            pumps = [
                asyncio.ensure_future(self._pump(self._reader, self._far, is_cut)),
                asyncio.ensure_future(self._pump(reader, self._writer, is_cut)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass
        finally:
            self.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_cut: Callable[[_Link], bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if not is_cut(self):
                    writer.write(data)
                    await writer.drain()

    def close(self) -> None:
        """End both connections."""
        for writer in (self._writer, self._far):
            if writer is not None:
                writer.close()
