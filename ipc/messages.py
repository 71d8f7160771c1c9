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

EXIT_WITHOUT_MODULE: Final = 75
"""Exit status (EX_TEMPFAIL) of a worker that asks to be started again without a module which does not stop when told
to. Its last beat says which one and for how long; that goes into the next process's first `Config` as ``held``."""

MAX_HOLD_SECONDS: Final = 3600.0
"""Longest wait of a module that is handed on: the cap of the cool-down."""

MAX_DROPPED_RANGES = 256
"""Most ranges in one ``events`` frame; a worker with more waits for its next frame."""

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Number = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Percent = Annotated[float, msgspec.Meta(gt=0, le=100_000)]


class Hold(msgspec.Struct, kw_only=True):
    """What an earlier process of a worker knew of a module's own breaker; a module it names is not forgiven.

    Attributes:
        level: The n of the cool-down's exponent.
        trips: How often the module was stopped, ever.
        cause: Why it was stopped last.
        phase: ``open``: it may start after the wait, on probation. ``latched``: not before a reset or changed settings.
        retry_in_seconds: Wait that is left while open.
    """

    phase: Literal["closed", "open", "latched"] = "closed"
    level: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    trips: Count = 0
    cause: Annotated[str, msgspec.Meta(max_length=64)] = ""
    retry_in_seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Config(msgspec.Struct, kw_only=True):
    """Down: the whole configuration of a worker; the latest one wins.

    ``settings`` is the module's table, or a table of tables by module name where the worker has several. The numbers
    of the budget (percent of one core, seconds) are what the runtime paces long work by and judges its modules with.
    With ``dry_run`` it stops none of them and only says whom it would. ``held`` counts in a process's first
    configuration only: what an earlier process knew of its modules' breakers. With ``acks`` the master acknowledges
    events once they are safe; until then they count as the worker's, which hands over a bounded amount of them.
    """

    revision: int
    hash: str
    settings: dict[str, Any]
    rules: Any = None
    log_level: LogLevel = "info"
    beat_seconds: float = 5.0
    events_per_second: float = 1000.0
    cpu_trip_percent: Percent = 5.0
    cpu_trip_samples: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 12
    cpu_quota_percent: Percent = 10.0
    sample_seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 5.0
    dry_run: bool = False
    held: dict[str, Hold] = {}
    acks: bool = False


class Control(msgspec.Struct):
    """Down: ``degrade`` asks the worker to do less, ``normal`` ends that, ``reset`` closes its modules' breakers."""

    action: Literal["degrade", "normal", "reset"]


class Task(msgspec.Struct, kw_only=True):
    """Down: one piece of work, answered by a `Result` with the same id.

    While it runs, and for `allowance_seconds` from its start at most, it may use `allowance_percent` of one core
    instead of its module's share of ``cpu_trip_percent``; never more than ``cpu_quota_percent``. 0: no allowance.
    """

    id: str
    task: str
    module: str = ""
    arguments: dict[str, Any] = {}
    not_after: float | None = None
    allowance_percent: Annotated[float, msgspec.Meta(ge=0, le=100_000)] = 0.0
    allowance_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 0.0


class Ack(msgspec.Struct):
    """Down: the master answers for the events of a priority up to a number: they are stored, delivered or counted."""

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


ModuleState = Literal["starting", "running", "backoff", "tripped", "latched", "stopped"]


class ModuleBeat(msgspec.Struct, kw_only=True):
    """One module inside a beat.

    Attributes:
        name: Its name in the worker.
        state: ``backoff`` waits after a failure, ``tripped`` after it was stopped for what it used; ``latched`` waits
            for a reset or changed settings.
        restarts: How often it was started again.
        cpu_seconds: CPU time of its thread so far.
        last_task: The piece of work that it does or did last: a task, what it does every so many seconds, or what it
            called its work itself.
        error: What was wrong last; empty once it has run well for a minute.
        cpu_percent: CPU time of its thread in the last sample, percent of one core.
        degraded: It was asked to do less: by the agent, or for what it used itself.
        probation: It was stopped before, and is stopped again at the next breach.
        level: The n of its breaker's cool-down.
        trips: How often it was stopped for what it used.
        would_trips: How often it would have been stopped, were it not for ``dry_run``.
        cause: Why it was stopped last.
        retry_in_seconds: Wait that is left while tripped; None while latched.
        allowance_percent: CPU that the task which runs now may use, percent of one core; 0: no more than usual.
    """

    name: Annotated[str, msgspec.Meta(max_length=128)]
    state: ModuleState = "running"
    restarts: Count = 0
    cpu_seconds: float = 0.0
    last_task: Annotated[str, msgspec.Meta(max_length=128)] = ""
    error: Annotated[str, msgspec.Meta(max_length=512)] = ""
    cpu_percent: float = 0.0
    degraded: bool = False
    probation: bool = False
    level: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    trips: Count = 0
    would_trips: Count = 0
    cause: Annotated[str, msgspec.Meta(max_length=64)] = ""
    retry_in_seconds: float | None = 0.0
    allowance_percent: float = 0.0


class Beat(msgspec.Struct, kw_only=True):
    """Up: the worker is alive. ``emitted`` counts events numbered so far, by priority.

    ``unacknowledged`` counts those that were handed over and wait for an `Ack`, where the master sends any.
    ``degraded`` is what the last `Control` asked for. ``last_module`` is the module that used the most CPU time since
    the beat before (the only one, where there is one): its ``last_task`` is what a breach is put down to.
    """

    emitted: dict[Priority, Count] = {}
    queued: Count = 0
    queued_bytes: Count = 0
    unacknowledged: Count = 0
    dropped: dict[Annotated[str, msgspec.Meta(max_length=64)], Count] = {}
    modules: Annotated[list[ModuleBeat], msgspec.Meta(max_length=64)] = []
    degraded: bool = False
    last_module: Annotated[str, msgspec.Meta(max_length=128)] = ""


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


def holds_of(beat: Beat, ago: float) -> dict[str, Hold]:
    """Return what the next process has to know of the modules' breakers, for `Config.held`.

    Args:
        beat: The last beat of the process before.
        ago: Seconds since that beat, of a monotonic clock; negative counts as 0.
    """
    holds = {}
    for module in beat.modules:
        if module.state not in ("tripped", "latched") and not module.probation and not module.trips:
            continue
        hold = Hold(level=module.level, trips=module.trips, cause=module.cause)
        if module.state == "latched":
            hold.phase = "latched"
        elif module.state == "tripped":
            hold.phase = "open"
            # Of what a worker claims only a sensible number is believed.
            left = module.retry_in_seconds if module.retry_in_seconds is not None else 0.0
            hold.retry_in_seconds = min(max(left - max(ago, 0.0), 0.0), MAX_HOLD_SECONDS) if left == left else 0.0
        elif module.probation:
            hold.phase = "open"
        holds[module.name] = hold
    return holds


def last_work_of(beat: Beat | None) -> tuple[str, str]:
    """Return module and piece of work that a breach of the worker is put down to; empty where nothing is known."""
    if beat is None:
        return "", ""
    for module in beat.modules:
        if module.name == beat.last_module:
            return module.name, module.last_task
    return beat.last_module, ""


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
