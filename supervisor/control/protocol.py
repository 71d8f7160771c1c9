"""The control protocol: JSON lines over a Unix stream socket.

A request is one line ``{"op": str, "args": {...}}``. Its reply is one line, ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": {"message": str, "remedy": str, "code": str}}``. A stream is several lines
``{"ok": true, "item": ...}``, between them ``{"ok": true, "dropped": n}`` where the reader was too slow, and at
the end ``{"ok": true, "end": true}`` or an error. Requests on one connection are answered in order; after a
stream, and after a line that is no request, the server closes the connection.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

SOCKET_NAME: Final = "control.sock"
"""The socket's name in the agent's ``run_dir``."""

PROTOCOL_VERSION: Final = 1
"""Counts up when a request or reply changes in a way that an older peer would misread."""

MAX_REQUEST_BYTES: Final = 64 * 1024
"""Longest request line, bytes, its newline included."""

MAX_REPLY_BYTES: Final = 4 * 1024 * 1024
"""Longest reply line, bytes, its newline included."""

MAX_LAST_EVENTS: Final = 1000
"""Most past events that one ``events`` request may ask for."""

MAX_HISTORY: Final = 1000
"""Most entries that one ``history`` request may ask for."""

WorkerName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
EventKind = Literal["alert", "state", "event", "metric"]


class ControlError(Exception):
    """A request that was not carried out.

    Args:
        message: What happened, to which thing.
        remedy: What the operator can do; may be empty.
        code: A word for programs, fixed between versions: ``bad_request``, ``unknown_op``, ``unknown_worker``,
            ``not_allowed``, ``busy``, ``timeout``, ``reply_too_large``, ``stopping``, ``internal``, or a
            handler's own.
    """

    def __init__(self, message: str, remedy: str = "", code: str = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class Request(msgspec.Struct):
    """One request line."""

    op: Annotated[str, msgspec.Meta(max_length=64)]
    args: dict[str, Any] = {}


class NoArgs(msgspec.Struct, forbid_unknown_fields=True):
    """For an operation without arguments."""


class WorkerArgs(msgspec.Struct, forbid_unknown_fields=True):
    """``start``, ``stop``, ``freeze``, ``thaw``, ``reset``: the worker's name."""

    worker: WorkerName


class KillArgs(msgspec.Struct, forbid_unknown_fields=True):
    """``kill``: why, for the status of this host and for whoever comes next."""

    reason: Annotated[str, msgspec.Meta(max_length=512)] = ""


class HistoryArgs(msgspec.Struct, forbid_unknown_fields=True):
    """``history``: the last so many entries of a worker, or of all where it is empty."""

    worker: Annotated[str, msgspec.Meta(max_length=128)] = ""
    last: Annotated[int, msgspec.Meta(ge=1, le=MAX_HISTORY)] = 50


class EventsArgs(msgspec.Struct, forbid_unknown_fields=True):
    """``events``: the last so many, then new ones as they come where `follow`; an empty filter takes all."""

    follow: bool = False
    last: Annotated[int, msgspec.Meta(ge=0, le=MAX_LAST_EVENTS)] = 10
    kinds: Annotated[list[EventKind], msgspec.Meta(max_length=4)] = []
    workers: Annotated[list[WorkerName], msgspec.Meta(max_length=64)] = []


class Dropped(msgspec.Struct, frozen=True):
    """In a stream: so many items are missing here, because they were not read in time.

    The server puts them in by itself; a handler that has dropped items in a queue of its own yields one too.
    """

    count: int


class VersionResult(msgspec.Struct):
    """What ``version`` answers."""

    version: str
    protocol: int = PROTOCOL_VERSION


OPS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "status": NoArgs,
    "version": NoArgs,
    "start": WorkerArgs,
    "stop": WorkerArgs,
    "freeze": WorkerArgs,
    "thaw": WorkerArgs,
    "reset": WorkerArgs,
    "kill": KillArgs,
    "release": NoArgs,
    "events": EventsArgs,
    "history": HistoryArgs,
}
"""The operations and the struct that checks the arguments of each."""


class ErrorBody(msgspec.Struct):
    """The ``error`` of a reply."""

    message: str
    remedy: str = ""
    code: str = "failed"


class Reply(msgspec.Struct, omit_defaults=True):
    """One reply line of any kind, as the client reads it."""

    ok: bool
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    item: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    dropped: int | msgspec.UnsetType = msgspec.UNSET
    end: bool = False
    error: ErrorBody | None = None


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(Request)
_reply_decoder = msgspec.json.Decoder(Reply)

END_LINE: Final = b'{"ok":true,"end":true}\n'


def encode_request(op: str, args: Mapping[str, Any]) -> bytes:
    """Return a request line.

    Raises:
        ControlError: The line is over `MAX_REQUEST_BYTES`.
    """
    line = _encoder.encode(Request(op, dict(args))) + b"\n"
    if len(line) > MAX_REQUEST_BYTES:
        raise ControlError(
            f"a request of {len(line)} bytes is over the limit of {MAX_REQUEST_BYTES}",
            "give fewer or shorter arguments",
            "bad_request",
        )
    return line


def decode_request(line: bytes) -> Request:
    """Return the request of a line.

    Raises:
        ControlError: The line is no request.
    """
    try:
        return _request_decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ControlError(
            f"this is no request: {error}",
            'send one JSON object a line: {"op": "status", "args": {}}',
            "bad_request",
        ) from error


def check_args(op: str, args: Mapping[str, Any], ops: Mapping[str, type[msgspec.Struct]] = OPS) -> dict[str, Any]:
    """Return the arguments of an operation, checked, with the defaults filled in.

    Raises:
        ControlError: The operation is unknown, or an argument is unknown, missing, or out of range.
    """
    shape = ops.get(op)
    if shape is None:
        raise ControlError(
            f"this agent has no operation {op!r}{suggestion(op, ops)}",
            f"it knows: {', '.join(sorted(ops))}; is the agent as new as the command?",
            "unknown_op",
        )
    try:
        checked = msgspec.convert(args, shape)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ControlError(f"wrong arguments for {op!r}: {error}", "see `garrison --help`", "bad_request") from error
    return {name: getattr(checked, name) for name in shape.__struct_fields__}


def result_line(result: object) -> bytes:
    """Return the line of a result.

    Raises:
        ControlError: The line is over `MAX_REPLY_BYTES`.
        TypeError: The result is nothing that JSON can carry.
    """
    return _bounded(b'{"ok":true,"result":' + _encoder.encode(result) + b"}\n")


def item_line(item: object) -> bytes:
    """Return the line of one item of a stream, or of a `Dropped`.

    A `msgspec.Raw` or bytes is taken as one JSON document that is already encoded, which may come from a worker
    and so be anything. What is not one JSON document goes out as ``{"undecodable": ...}``, cut to 512 characters.

    Raises:
        ControlError: The line is over `MAX_REPLY_BYTES`.
        TypeError: The item is nothing that JSON can carry.
    """
    if isinstance(item, Dropped):
        return dropped_line(item.count)
    if isinstance(item, msgspec.Raw | bytes | bytearray | memoryview):
        item = _one_document(bytes(item))
    return _bounded(b'{"ok":true,"item":' + _encoder.encode(item) + b"}\n")


def dropped_line(count: int) -> bytes:
    """Return the line that says how many items the reader of a stream has missed here."""
    return b'{"ok":true,"dropped":%d}\n' % count


def error_line(error: ControlError) -> bytes:
    """Return the line of an error; its texts are cut so that it always fits."""
    body = ErrorBody(_printable(error.message), _printable(error.remedy), _printable(error.code)[:64])
    return b'{"ok":false,"error":' + _encoder.encode(body) + b"}\n"


def decode_reply(line: bytes) -> Reply:
    """Return the reply of a line.

    Raises:
        ValueError: The line is no reply of this protocol.
    """
    try:
        return _reply_decoder.decode(line)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"this is no reply: {error}") from error


def unknown_worker(name: str, known: Iterable[str]) -> ControlError:
    """Return the error for a worker that does not exist; it names the nearest and lists those that do."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none is configured"
    return ControlError(
        f"there is no worker {name[:128]!r}{suggestion(name, names)}", f"workers: {listed}", "unknown_worker"
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or nothing where none is near."""
    near = difflib.get_close_matches(name[:128], list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _bounded(line: bytes) -> bytes:
    if len(line) > MAX_REPLY_BYTES:
        raise ControlError(
            f"the answer is {len(line)} bytes long, over the limit of {MAX_REPLY_BYTES}",
            "ask for less",
            "reply_too_large",
        )
    return line


def _one_document(data: bytes) -> object:
    # Skipping through the document is cheap and refuses control characters inside strings; line breaks that
    # JSON allows between tokens would tear the reply line apart.
    try:
        raw = msgspec.Raw(data.strip())
        msgspec.json.decode(raw, type=msgspec.Raw)
        data.decode("utf-8")
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return {"undecodable": data[:512].decode("utf-8", "backslashreplace")}
    return raw if b"\n" not in bytes(raw) else msgspec.json.decode(raw)


def _printable(text: str) -> str:
    # A lone surrogate (from a file name, say) cannot be encoded and would turn one error into another.
    return text[:16384].encode("utf-8", "backslashreplace").decode("utf-8")
