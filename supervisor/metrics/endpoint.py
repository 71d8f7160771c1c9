"""The endpoint that Prometheus scrapes, on the master's loop.

Written on bare sockets, because nothing that connects may cost the master more than a bound: connections are
accepted one at a time at a limited rate, and while all places are taken none is, so that the rest waits in the
kernel's queue; a request has a size and a time, and so has taking the answer. Whoever holds all places keeps other
scrapers out for seconds, and the agent from nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from garrison.ipc.pacing import TokenBucket
from garrison.supervisor import logs
from garrison.supervisor.control.endpoint import ControlSocketError, listen, unlink_if_ours
from garrison.supervisor.metrics import request
from garrison.supervisor.metrics.address import Address, is_loopback

RESULTS = ("ok", "refused", "timeout", "error")
"""What becomes of a connection: answered; answered with a refusal; too slow; broken off, or we failed."""

_BACKLOG = 16
_READ_BYTES = 4096
_DISCARD_BYTES = 64 * 1024

_log = logs.get("metrics")


class EndpointError(Exception):
    """The endpoint cannot listen; the text says where, why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLimits:
    """Bounds of the endpoint; times in seconds.

    Attributes:
        connections: At once; further ones wait in the kernel's queue.
        request_seconds: Within which a request has to be there.
        answer_seconds: Within which the answer has to be taken.
        linger_seconds: How long a client that has its answer may take to close.
        rate: Connections a second that are taken on average.
        burst: Connections that are taken at once after a quiet time.
    """

    connections: int = 8
    request_seconds: float = 5.0
    answer_seconds: float = 10.0
    linger_seconds: float = 1.0
    rate: float = 10.0
    burst: float = 100.0


class MetricsEndpoint:
    """Serves the metrics at one address on the running loop.

    Args:
        address: Where to listen.
        body: Returns the metrics; called for each scrape.
        requests: Where results are counted.
        group: The group that may use a UNIX socket, by number; None: root and the agent's own user only.
        limits: The bounds.

    Attributes:
        address: Where it listens; with the port that the system chose where 0 was asked for.
    """

    def __init__(
        self,
        address: Address,
        body: Callable[[], Awaitable[bytes]],
        requests: Counter[str],
        *,
        group: int | None = None,
        limits: EndpointLimits | None = None,
    ) -> None:
        self.address = address
        self._body = body
        self._requests = requests
        self._group = group
        self._limits = limits or EndpointLimits()
        self._socket: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(self._limits.connections)

    @property
    def connections(self) -> int:
        """Connections that are served now."""
        return len(self._tasks)

    def open(self) -> None:
        """Begin to listen.

        Raises:
            EndpointError: That is not possible now.
        """
        if self.address.family == socket.AF_UNIX:
            self._socket = self._listen_on_path()
        else:
            self._socket = self._listen_on_loopback()
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._socket), name="metrics endpoint")

    async def close(self) -> None:
        """Stop listening and cut off whoever is connected. Idempotent."""
        sock, self._socket = self._socket, None
        if sock is None:
            return
        tasks = set(self._tasks)
        if self._accepting is not None:
            tasks.add(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if self._inode is not None:
            unlink_if_ours(self.address.host, self._inode)
        sock.close()

    def _listen_on_loopback(self) -> socket.socket:
        family, host, port = self.address
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # After a restart the port of connections that linger is free to listen on; that of a listener is not.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            if not is_loopback(family, sock.getsockname()[0]):
                raise EndpointError(f"the metrics endpoint would be at {host}, which is not loopback")
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise EndpointError(
                f"the metrics endpoint cannot listen at {self.address}: {error.strerror or error}; choose another "
                "[metrics] listen, or stop what is there (`ss -ltnp`)"
            ) from error
        except EndpointError:
            sock.close()
            raise
        self.address = Address(family, host, sock.getsockname()[1])
        return sock

    def _listen_on_path(self) -> socket.socket:
        path = self.address.host
        try:
            sock, self._inode = listen(path, what="metrics socket", setting="[metrics] listen")
        except ControlSocketError as error:
            raise EndpointError(str(error)) from error
        if self._group is not None:
            try:
                os.chown(path, -1, self._group, follow_symlinks=False)
                os.chmod(path, 0o660)
            except OSError as error:
                unlink_if_ours(path, self._inode)
                sock.close()
                raise EndpointError(
                    f"the metrics socket {path} cannot be given to group {self._group}: {error.strerror}; "
                    "set [metrics] socket_group to a group of the agent's user"
                ) from error
        return sock

    async def _accept(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        bucket = TokenBucket(self._limits.rate, self._limits.burst)
        while True:
            await self._places.acquire()
            connection = None
            try:
                while not bucket.admit(0, loop.time()):  # noqa: ASYNC110  (for time to pass)
                    await asyncio.sleep(1 / self._limits.rate)
                connection, peer = await loop.sock_accept(sock)
                bucket.admit(1, loop.time())
                if sock.family != socket.AF_UNIX and not is_loopback(self.address.family, peer[0]):
                    self._requests["refused"] += 1
                    connection.close()
                    connection = None
            except OSError as error:
                # Out of descriptors, most likely: who waits in the kernel's queue goes on waiting.
                self._requests["error"] += 1
                _log.warning("no metrics connection can be taken now: %s", error)
                await asyncio.sleep(1.0)
            finally:
                if connection is None:
                    self._places.release()
            if connection is not None:
                task = loop.create_task(self._serve(connection), name="metrics connection")
                self._tasks.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            try:
                result = await self._talk(connection)
                self._requests[result] += 1
                connection.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(self._limits.linger_seconds):
                    # What is not read when a socket is closed makes the kernel take the answer back (RST).
                    for _ in range(_DISCARD_BYTES // _READ_BYTES):
                        if not await loop.sock_recv(connection, _READ_BYTES):
                            break
            except TimeoutError:
                return
            except OSError:
                self._requests["error"] += 1  # the client has left: there is nobody to tell

    async def _talk(self, connection: socket.socket) -> str:
        loop, limits = asyncio.get_running_loop(), self._limits
        head = bytearray()
        try:
            async with asyncio.timeout(limits.request_seconds):
                while not request.complete(head) and len(head) <= request.MAX_REQUEST_BYTES:
                    more = await loop.sock_recv(connection, _READ_BYTES)
                    if not more:
                        return "error"
                    head += more
        except TimeoutError:
            await self._send(connection, request.answer(408))
            return "timeout"
        status, body = (request.judge(head) if request.complete(head) else 431), b""
        if status == 200:
            try:
                body = await self._body()
            except Exception:  # noqa: BLE001  a mistake in what is collected must not end the endpoint
                _log.exception("the metrics cannot be collected")
                status = 500
        if not await self._send(connection, request.answer(status, body), body if status == 200 else b""):
            return "timeout"
        return "ok" if status == 200 else "error" if status == 500 else "refused"

    async def _send(self, connection: socket.socket, *parts: bytes) -> bool:
        """Send an answer. False: the client did not take it in time."""
        try:
            async with asyncio.timeout(self._limits.answer_seconds):
                for part in parts:
                    await asyncio.get_running_loop().sock_sendall(connection, part)
        except TimeoutError:
            return False
        return True
