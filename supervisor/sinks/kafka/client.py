"""kafka-python's client with what it lacks in faults. Imported with the first session only.

- The sender's thread takes seconds for milliseconds where a broker is away, and so wakes a thousand times a second.
- A login that is refused counts as a connection that was made: the next follows at once, as fast as the CPU can.
- Why a connection failed is told to the log only.
- It reads for as long as something comes: whoever answers on a broker's port faster than we read fills the memory.
"""

from __future__ import annotations

import functools
import ssl
from typing import Any

from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

POLL_CAP_MILLISECONDS = 1000.0
READ_BYTES = 256 * 1024
"""Most bytes that are read before they are looked at; they are a part of an answer of bounded size, or the end."""
PIECE_BYTES = 16 * 1024
_FINAL = ("SaslAuthenticationFailedError", "UnsupportedSaslMechanismError")


class Manager(KafkaConnectionManager):  # type: ignore[misc,unused-ignore]
    """Makes the connections.

    Attributes:
        unreachable: Why the last connection that failed could not be made.
        refused: The refusal of a login. Nothing is tried any more after it.
    """

    def __init__(self, net: Any, **configs: Any) -> None:
        self.unreachable: Exception | None = None
        self.refused: Exception | None = None
        super().__init__(net, **configs)

    def get_connection(self, node_id: Any, *arguments: Any, **keywords: Any) -> Any:
        """As the original; hears how it ends."""
        known = self._conns.get(node_id)
        connection = super().get_connection(node_id, *arguments, **keywords)
        if connection is not known:
            connection.init_future.add_errback(self._failed)
        return connection

    async def _build_transport(self, *arguments: Any, **keywords: Any) -> Any:
        transport = await super()._build_transport(*arguments, **keywords)
        transport._sock_recv = functools.partial(_receive, transport)  # noqa: SLF001
        return transport

    def reset_backoff(self, node_id: Any) -> None:
        """As the original, which is also called after a login that was refused."""
        connection = self._conns.get(node_id)
        if connection is None or not connection.connected:
            self.update_backoff(node_id)
        else:
            super().reset_backoff(node_id)

    def _failed(self, error: Exception) -> None:
        self.unreachable = error
        if type(error).__name__ in _FINAL:
            self.refused = error
            # Ten more attempts a host would not make the password right, and logins cost brokers much.
            self._net.call_later(0, self.close)


class Client(KafkaNetClient):  # type: ignore[misc,unused-ignore]
    """What the producer talks to."""

    def __init__(self, **configs: Any) -> None:
        net = NetworkSelector(**configs)
        self.manager = Manager(net, **configs)
        super().__init__(net=net, manager=self.manager, **configs)

    def connection_delay(self, node_id: Any) -> float:
        """Return when a broker may be tried again, in milliseconds, which the sender counts in."""
        return min(POLL_CAP_MILLISECONDS, float(self.manager.connection_delay(node_id)) * 1000)


def _receive(transport: Any) -> tuple[bytes, Exception | None]:
    """Return what has come, up to about `READ_BYTES`, and what ended the connection; the rest comes the next time."""
    sock, pieces, size = transport._sock, [], 0  # noqa: SLF001
    error: Exception | None = None
    while True:
        try:
            piece = sock.recv(PIECE_BYTES)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            break
        except OSError as failure:
            error = KafkaConnectionError(failure)
            break
        if not piece:
            error = KafkaConnectionError("socket disconnected")
            break
        pieces.append(piece)
        size += len(piece)
        # What TLS has decrypted already would not wake us again; it is less than one record.
        if size >= READ_BYTES and not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            break
    return b"".join(pieces), error
