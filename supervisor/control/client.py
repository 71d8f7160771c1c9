"""The client's side of the control socket: synchronous, for the command line and for scripts."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from garrison.supervisor.control.protocol import (
    MAX_REPLY_BYTES,
    ControlError,
    Dropped,
    Reply,
    decode_reply,
    encode_request,
)

_READ_BYTES: Final = 64 * 1024
_START_HINT: Final = "start it with `systemctl start garrison`, or `garrisond --config FILE`"

T = TypeVar("T")


class AgentNotRunningError(ControlError):
    """Nobody listens on the socket, or the agent went away before it answered. Start it, or name its socket."""


class PermissionDeniedError(ControlError):
    """The socket may not be opened, or the agent refuses this user. Run as root."""


class AgentTimeoutError(ControlError):
    """The agent accepted nothing or answered nothing in time: it is hung, stopped or starved."""


class ProtocolMismatchError(ControlError):
    """What came back is not this protocol: another program's socket, or another version of the agent."""


class ControlClient:
    """Talks to the agent over its control socket, one connection for each request.

    Args:
        path: The socket.
        timeout: Seconds for a whole `call`, and for each item of a stream that does not follow.
    """

    def __init__(self, path: str, timeout: float = 10.0) -> None:
        self.path = path
        self.timeout = timeout

    def call(self, op: str, **args: Any) -> Any:
        """Return the result of an operation, decoded.

        Raises:
            AgentNotRunningError: Nobody listens, or the agent went away.
            PermissionDeniedError: This user may not.
            AgentTimeoutError: No answer in time.
            ProtocolMismatchError: The answer is not this protocol.
            ControlError: The agent answered with an error.
        """
        return msgspec.json.decode(self.call_raw(op, **args))

    def call_as(self, shape: type[T], op: str, **args: Any) -> T:
        """Return the result of an operation as a struct; raises what `call` does."""
        raw = self.call_raw(op, **args)
        try:
            return msgspec.json.decode(raw, type=shape)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            raise self._mismatch(f"its answer to {op!r} has another shape: {error}") from error

    def call_raw(self, op: str, **args: Any) -> bytes:
        """Return the result of an operation as the JSON text that the agent sent; raises what `call` does."""
        with _Connection(self.path, self.timeout) as connection:
            connection.send(encode_request(op, args))
            reply = self._decode(connection.line())
        if isinstance(reply.result, msgspec.UnsetType):
            raise self._mismatch(f"its answer to {op!r} has no result")
        return bytes(reply.result)

    def stream(self, op: str, **args: Any) -> Generator[msgspec.Raw | Dropped, None, None]:
        """Yield the items of a stream as JSON text, and `Dropped` where some are missing.

        Returns at the stream's end marker. With ``follow=True`` it waits for each item without a limit, and the
        end marker means that the agent stops. Closing the iterator closes the connection. Raises what `call` does;
        `AgentNotRunningError` where the agent dies in between.
        """
        with _Connection(self.path, self.timeout) as connection:
            connection.send(encode_request(op, args))
            while True:
                connection.extend(None if args.get("follow") else self.timeout)
                reply = self._decode(connection.line())
                if reply.end:
                    return
                if not isinstance(reply.dropped, msgspec.UnsetType):
                    yield Dropped(reply.dropped)
                elif not isinstance(reply.item, msgspec.UnsetType):
                    yield reply.item
                else:
                    raise self._mismatch(f"its stream for {op!r} has a line that is no item")

    def _decode(self, line: bytes) -> Reply:
        try:
            reply = decode_reply(line)
        except ValueError as error:
            raise self._mismatch(str(error)) from error
        if reply.ok:
            return reply
        if reply.error is None:
            raise self._mismatch("it refused without an error")
        kind = PermissionDeniedError if reply.error.code == "not_allowed" else ControlError
        raise kind(reply.error.message, reply.error.remedy, reply.error.code)

    def _mismatch(self, what: str) -> ProtocolMismatchError:
        return ProtocolMismatchError(
            f"what listens on {self.path} does not speak this protocol: {what}",
            "compare the versions (`garrison version`), and check that the socket is the agent's",
            "protocol",
        )


class _Connection:
    """One connected socket with a deadline; translates what can go wrong into the errors above."""

    def __init__(self, path: str, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._deadline: float | None = time.monotonic() + timeout
        self._buffer = bytearray()
        self._scanned = 0
        self._unsent: OSError | None = None
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise self._explain(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def extend(self, timeout: float | None) -> None:
        """Set the deadline anew, seconds from now; None waits without end."""
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def send(self, line: bytes) -> None:
        try:
            self._socket.settimeout(self._remaining())
            self._socket.sendall(line)
        except (BrokenPipeError, ConnectionResetError) as error:
            # An agent that refuses this connection has said why before it closed: that is still to be read.
            self._unsent = error
        except OSError as error:
            raise self._explain(error) from error

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\n", self._scanned)) < 0:
            self._scanned = len(self._buffer)
            if self._scanned >= MAX_REPLY_BYTES:
                raise ProtocolMismatchError(
                    f"{self._path} sent a line of more than {MAX_REPLY_BYTES} bytes",
                    "check that the socket is the agent's",
                    "protocol",
                )
            self._buffer += self._read()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._scanned = 0
        return line

    def _read(self) -> bytes:
        try:
            self._socket.settimeout(self._remaining())
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise self._explain(error) from error
        if not data:
            raise self._gone() from self._unsent
        return data

    def _remaining(self) -> float | None:
        # Zero would mean "do not block" to the socket module.
        return None if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    def _gone(self) -> AgentNotRunningError:
        return AgentNotRunningError(
            f"the agent closed {self._path} before it had answered: it has stopped or crashed",
            "see `journalctl -u garrison` or the agent's log, and try again",
            "gone",
        )

    def _explain(self, error: OSError) -> ControlError:
        path = self._path
        if isinstance(error, TimeoutError | BlockingIOError):
            return AgentTimeoutError(
                f"the agent on {path} did not answer within {self._timeout:g} s",
                "is its process stopped, or the host out of CPU or memory? See `systemctl status garrison` and the"
                " agent's log; `systemctl kill -s ABRT garrison` writes where it hangs",
                "timeout",
            )
        if isinstance(error, PermissionError):
            return PermissionDeniedError(
                f"no permission to open {path}", "run as root: `sudo garrison ...`", "not_allowed"
            )
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return AgentNotRunningError(
                f"the agent is not running: there is no socket {path}",
                f"{_START_HINT}; if it runs with another configuration, give `--config FILE` or `--socket PATH`",
                "not_running",
            )
        if isinstance(error, ConnectionRefusedError):
            return AgentNotRunningError(
                f"the agent is not running: nobody listens on {path} any more", _START_HINT, "not_running"
            )
        if isinstance(error, ConnectionError):
            return self._gone()
        if error.errno == errno.EPROTOTYPE or error.errno == errno.ENOTSOCK:
            return ProtocolMismatchError(f"{path} is not a stream socket", "give the agent's own socket", "protocol")
        return AgentNotRunningError(
            f"cannot connect to {path}: {error.strerror or error}",
            "check `run_dir` in the configuration, or give `--socket PATH` (at most 107 bytes)",
            "not_running",
        )
