"""Messages: what the frames of each direction carry, as typed structs.

Decoding checks every field's type and range, so that what a hostile peer sends is either one of these
structs or a `ProtocolError`. Unknown fields are ignored, so that either side can be the newer one.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from garrison.ipc.frames import ProtocolError

Priority = Literal["alert", "state", "event", "metric"]
PRIORITIES: Final[tuple[Priority, ...]] = ("alert", "state", "event", "metric")
"""From the most to the least important: what is shed first stands last."""

LogLevel = Literal["debug", "info", "notice", "warning", "err", "crit", "alert", "emerg"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "notice", "warning", "err", "crit", "alert", "emerg")
"""The syslog severities, from the least to the most important."""

MAX_DROPPED_RANGES = 256
"""Most ranges in one ``events`` frame; a worker with more waits for its next frame."""

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Config(msgspec.Struct, kw_only=True):
    """Down: the whole configuration of a worker; the latest one wins.

    ``settings`` is the module's table, or a table of tables by module name where the worker has several.
    """

    revision: int
    hash: str
    settings: dict[str, Any]
    rules: Any = None
    log_level: LogLevel = "info"
    beat_seconds: float = 5.0
    events_per_second: float = 1000.0


class Control(msgspec.Struct):
    """Down: ``degrade`` asks the worker to do less, ``normal`` ends that."""

    action: Literal["degrade", "normal"]


class Task(msgspec.Struct, kw_only=True):
    """Down: one piece of work, answered by a `Result` with the same id."""

    id: str
    task: str
    module: str = ""
    arguments: dict[str, Any] = {}
    not_after: float | None = None


class Ack(msgspec.Struct):
    """Down: the master has taken responsibility for events of a priority up to a number."""

    priority: Priority
    through: Number


class Stop(msgspec.Struct):
    """Down: flush what is queued, then exit 0."""

    reason: str = ""


Down = Config | Control | Task | Ack | Stop


class Ready(msgspec.Struct, kw_only=True):
    """Up: the worker has its modules started. ``pid`` is a claim for the log only."""

    pid: int = 0
    modules: Annotated[list[str], msgspec.Meta(max_length=64)] = []


class ModuleBeat(msgspec.Struct, kw_only=True):
    """One module inside a beat. ``cpu_seconds`` is its thread's CPU time."""

    name: Annotated[str, msgspec.Meta(max_length=128)]
    state: Literal["starting", "running", "backoff", "stopped"] = "running"
    restarts: Count = 0
    cpu_seconds: float = 0.0
    last_task: Annotated[str, msgspec.Meta(max_length=128)] = ""
    error: Annotated[str, msgspec.Meta(max_length=512)] = ""


class Beat(msgspec.Struct, kw_only=True):
    """Up: the worker is alive. ``emitted`` counts events numbered so far, by priority."""

    emitted: dict[Priority, Count] = {}
    queued: Count = 0
    queued_bytes: Count = 0
    dropped: dict[Annotated[str, msgspec.Meta(max_length=64)], Count] = {}
    modules: Annotated[list[ModuleBeat], msgspec.Meta(max_length=64)] = []


DroppedRange = tuple[Number, Number, Annotated[str, msgspec.Meta(max_length=64)]]


class Events(msgspec.Struct, kw_only=True):
    """Up: a batch of one priority: ``count`` JSON documents, each ended by a newline.

    Numbers run from 1 per process and priority. ``first`` is that of the batch's first document, or, in a
    batch without documents, the next number to come. The ranges of ``dropped`` (first, last, reason, both
    inclusive) are the numbers between the batch before and this one; together they leave no gap.
    """

    priority: Priority
    first: Number
    count: Annotated[int, msgspec.Meta(ge=0, le=65536)]
    data: bytes
    dropped: Annotated[list[DroppedRange], msgspec.Meta(max_length=MAX_DROPPED_RANGES)] = []


class Log(msgspec.Struct, kw_only=True):
    """Up: one line for the agent's log. ``suppressed`` lines before it were not sent."""

    level: LogLevel
    message: Annotated[str, msgspec.Meta(max_length=8192)]
    module: Annotated[str, msgspec.Meta(max_length=128)] = ""
    suppressed: Count = 0


class Applied(msgspec.Struct, kw_only=True):
    """Up: what became of a `Config`: taken, or refused with the reason and the old one kept."""

    revision: int
    ok: bool
    error: Annotated[str, msgspec.Meta(max_length=2048)] | None = None


class Result(msgspec.Struct, kw_only=True):
    """Up: what became of a `Task`."""

    id: Annotated[str, msgspec.Meta(max_length=256)]
    ok: bool
    error: Annotated[str, msgspec.Meta(max_length=2048)] | None = None
    value: Any = None


Up = Ready | Beat | Events | Log | Applied | Result

_DOWN: dict[str, msgspec.msgpack.Decoder[Down]] = {
    kind: msgspec.msgpack.Decoder(struct)
    for kind, struct in {"config": Config, "control": Control, "task": Task, "ack": Ack, "stop": Stop}.items()
}
_UP: dict[str, msgspec.msgpack.Decoder[Up]] = {
    kind: msgspec.msgpack.Decoder(struct)
    for kind, struct in {
        "ready": Ready,
        "beat": Beat,
        "events": Events,
        "log": Log,
        "applied": Applied,
        "result": Result,
    }.items()
}


def kind_of(message: Down | Up) -> str:
    """Return the frame kind of a message: its class name in lower case."""
    return type(message).__name__.lower()


def decode_down(kind: str, payload: msgspec.Raw) -> Down:
    """Return the typed message of a frame from the master.

    Raises:
        ProtocolError: The kind is unknown or the payload does not have its shape.
    """
    return _decode(_DOWN, kind, payload)


def decode_up(kind: str, payload: msgspec.Raw) -> Up:
    """Return the typed message of a frame from a worker.

    Raises:
        ProtocolError: The kind is unknown or the payload does not have its shape.
    """
    return _decode(_UP, kind, payload)


def _decode(decoders: dict[str, msgspec.msgpack.Decoder[T]], kind: str, payload: msgspec.Raw) -> T:
    decoder = decoders.get(kind)
    if decoder is None:
        raise ProtocolError(f"a frame of unknown kind {kind[:64]!r}")
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ProtocolError(f"a {kind!r} frame has a wrong payload: {error}") from error
