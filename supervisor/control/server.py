"""The master's side of the control socket.

Nothing that a client does, or fails to do, may block, grow or end the master: connections, streams, lines,
waiting times and queues are all bounded, and a failing handler is one error reply.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import msgspec

from garrison.supervisor.control import protocol
from garrison.supervisor.control.endpoint import listen, unlink_if_ours
from garrison.supervisor.control.outbox import Outbox
from garrison.supervisor.control.protocol import ControlError

_PEERCRED: Final = struct.Struct("3i")
_BUSY_REMEDY: Final = "end other `garrison` commands (`garrison events -f`, above all) and try again"

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks, as the kernel says: the process that connected."""

    pid: int
    uid: int
    gid: int


class Handler(Protocol):
    """What carries out requests. Runs on the master's loop, so it must not block."""

    async def __call__(self, op: str, args: dict[str, Any], peer: Peer) -> object | AsyncIterator[object]:
        """Return the result, or an async iterator for a stream; `args` are checked and complete.

        An item that is `msgspec.Raw` or bytes is one JSON document already encoded. The iterator's ``aclose`` is
        called when the client is gone.

        Raises:
            ControlError: The request was not carried out; goes to the client as it is.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """Bounds of the server; times in seconds.

    Attributes:
        connections: At once; more are refused.
        streams: At once, fewer than `connections`, so that forgotten ``events -f`` never keep out a ``kill``.
        request_seconds: Within which a request has to be there, and after which an idle connection is closed.
        handler_seconds: Within which the handler has to answer.
        send_seconds: Within which a client has to take a reply, or an item of a stream that does not follow.
        queue_items: Waiting in a stream that follows, before items are dropped.
        queue_bytes: The same in bytes.
    """

    connections: int = 16
    streams: int = 8
    request_seconds: float = 10.0
    handler_seconds: float = 60.0
    send_seconds: float = 10.0
    queue_items: int = 2048
    queue_bytes: int = 2 * 1024 * 1024


class _StoppingError(Exception):
    """The server is closing."""


class ControlServer:
    """Serves the control socket on the running loop.

    Args:
        path: The socket, ``<run_dir>/control.sock``.
        handler: Carries out the requests.
        allowed_uids: Who may ask; root and the agent's own user by default.
        ops: The operations and the structs that check their arguments.
        limits: The bounds.
    """

    def __init__(
        self,
        path: str,
        handler: Handler,
        allowed_uids: Collection[int] | None = None,
        *,
        ops: Mapping[str, type[msgspec.Struct]] = protocol.OPS,
        limits: ControlLimits | None = None,
    ) -> None:
        self.path = path
        self._handler = handler
        self._allowed = frozenset({0, os.geteuid()} if allowed_uids is None else allowed_uids)
        self._ops = ops
        self._limits = limits or ControlLimits()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] = (0, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._streams = 0

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return len(self._tasks)

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ControlSocketError: The socket cannot be made, or another agent listens on it.
        """
        sock, self._inode = listen(self.path)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=sock, limit=protocol.MAX_REQUEST_BYTES, backlog=self._limits.connections
            )
        except BaseException:
            sock.close()
            unlink_if_ours(self.path, self._inode)
            raise

    async def close(self, grace_seconds: float = 1.0) -> None:
        """Stop listening, end the streams with their marker, let running requests finish; then cut them off.

        Idempotent. The socket is removed, unless another agent has put its own there.
        """
        server, self._server = self._server, None
        if server is None:
            return
        unlink_if_ours(self.path, self._inode)
        server.close()
        self._stopping.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_seconds)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._admit(reader, writer)
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), self._limits.send_seconds)
        except (ConnectionError, TimeoutError, asyncio.CancelledError) as error:
            # The client has left, or takes nothing, or the server is closing: there is nobody to tell.
            _log.debug("control connection ended: %r", error)
        except Exception:  # noqa: BLE001  one connection's failure is not the master's
            _log.exception("control connection failed")
        finally:
            # Does nothing where all has been sent; else it gives back the memory at once.
            writer.transport.abort()
            self._tasks.discard(task)

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = _peer(writer)
        if peer.uid not in self._allowed:
            _log.warning("control request refused: uid %d, pid %d", peer.uid, peer.pid)
            await self._refuse(
                writer,
                f"uid {peer.uid} may not control this agent",
                "run as root: `sudo garrison ...`",
                "not_allowed",
            )
        elif len(self._tasks) > self._limits.connections:
            await self._refuse(
                writer, f"the agent already serves {self._limits.connections} clients", _BUSY_REMEDY, "busy"
            )
        else:
            more = True
            while more:
                more = await self._one_request(reader, writer, peer)

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> bool:
        """Read and answer one request. False: close the connection."""
        try:
            line = await self._until_stop(reader.readuntil(b"\n"), self._limits.request_seconds)
            request = protocol.decode_request(line)
        except _StoppingError:
            return False
        except asyncio.IncompleteReadError as error:
            if error.partial:
                await self._refuse(writer, "the request has no newline at its end", "send one line", "bad_request")
            return False
        except asyncio.LimitOverrunError:
            text = f"the request is longer than {protocol.MAX_REQUEST_BYTES} bytes"
            await self._refuse(writer, text, "send less in one request", "bad_request")
            return False
        except TimeoutError:
            text = f"no request came within {self._limits.request_seconds:g} s"
            await self._refuse(writer, text, "connect again when there is one to send", "timeout")
            return False
        except ControlError as error:
            # After a line that is no request nothing behind it can be trusted to be the start of one.
            await self._send(writer, protocol.error_line(error))
            return False
        answer = await self._ask(request, peer)
        if isinstance(answer, bytes):
            await self._send(writer, answer)
            return True
        items, follow = answer
        if self._streams < self._limits.streams:
            await self._stream(request.op, items, follow, reader, writer)
        else:
            await _aclose(items)
            await self._refuse(writer, f"the agent already serves {self._streams} streams", _BUSY_REMEDY, "busy")
        return False

    async def _ask(self, request: protocol.Request, peer: Peer) -> bytes | tuple[AsyncIterator[object], bool]:
        """Have the handler carry out a request: the reply line, or a stream and whether it follows."""
        try:
            args = protocol.check_args(request.op, request.args, self._ops)
            result = await asyncio.wait_for(self._handler(request.op, args, peer), self._limits.handler_seconds)
            if isinstance(result, AsyncIterator):
                return result, bool(args.get("follow"))
            return protocol.result_line(result)
        except Exception as error:  # noqa: BLE001  whatever a handler raises is the client's answer
            return protocol.error_line(self._safe(request.op, error))

    async def _stream(
        self,
        op: str,
        items: AsyncIterator[object],
        follow: bool,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._streams += 1
        outbox = Outbox(self._limits.queue_items, self._limits.queue_bytes)
        pump = asyncio.create_task(self._pump(op, items, follow, outbox))
        sender = asyncio.create_task(self._drain(outbox, writer, None if follow else self._limits.send_seconds))
        stop = asyncio.create_task(self._stopping.wait())
        # A client that follows has nothing more to say: the end of its side means that it has left.
        gone = asyncio.create_task(_discard(reader)) if follow else None
        helpers = [task for task in (pump, sender, stop, gone) if task is not None]
        try:
            waiting = [task for task in (sender, stop, gone) if task is not None]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not sender.done():
                await _cancel([pump])
                outbox.end(protocol.END_LINE)
                await sender
            elif sender.done():
                sender.result()
        finally:
            self._streams -= 1
            await _cancel(helpers)

    async def _pump(self, op: str, items: AsyncIterator[object], follow: bool, outbox: Outbox) -> None:
        """Move items from the handler into the outbox, so that the handler never waits for a slow follower.

        A stream that does not follow is finite, and nobody else waits for it: there the outbox pushes back.
        """
        last = protocol.END_LINE
        turn = time.monotonic()
        try:
            async for item in items:
                line = protocol.item_line(item)
                if follow:
                    outbox.offer(line)
                else:
                    await outbox.put(line)
                # An iterator that always has something ready would never let the loop turn.
                if (now := time.monotonic()) - turn > 0.002:
                    await asyncio.sleep(0)
                    turn = now
        except Exception as error:  # noqa: BLE001  whatever a handler raises is the client's answer
            last = protocol.error_line(self._safe(op, error))
        finally:
            await _aclose(items)
        outbox.end(last)

    async def _drain(self, outbox: Outbox, writer: asyncio.StreamWriter, seconds: float | None) -> None:
        while (line := await outbox.get()) is not None:
            writer.write(line)
            await asyncio.wait_for(writer.drain(), seconds)

    async def _refuse(self, writer: asyncio.StreamWriter, message: str, remedy: str, code: str) -> None:
        await self._send(writer, protocol.error_line(ControlError(message, remedy, code)))

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        await asyncio.wait_for(writer.drain(), self._limits.send_seconds)

    async def _until_stop(self, awaitable: Awaitable[T], seconds: float) -> T:
        """Wait for something, for the end of time, or for the end of the server."""
        task = asyncio.ensure_future(awaitable)
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if stop.done():
                raise _StoppingError
            raise TimeoutError
        finally:
            await _cancel([task, stop])

    def _safe(self, op: str, error: Exception) -> ControlError:
        """Return the error that the client may see; what the agent did not expect goes to its log in full."""
        if isinstance(error, ControlError):
            return error
        if isinstance(error, TimeoutError):
            text = f"{op!r} was not done within {self._limits.handler_seconds:g} s and was given up"
            return ControlError(text, "see `garrison status` for what became of it, and the agent's log", "timeout")
        _log.error("control operation %r failed", op, exc_info=error)
        return ControlError(
            f"{op!r} failed inside the agent ({type(error).__name__})", "see the agent's log", "internal"
        )


def _peer(writer: asyncio.StreamWriter) -> Peer:
    sock = writer.get_extra_info("socket")
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    return Peer(*_PEERCRED.unpack(raw))


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(4096):
        pass


async def _aclose(items: AsyncIterator[object]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


async def _cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what still runs, wait for its end, and take its outcome, so that none is reported as never read."""
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            _log.debug("control helper ended: %r", outcome)
