"""The values of keys: bytes from outside to typed values, or a refusal that says why. Pure.

Values are plain text or JSON, so that they can be written by hand. Each parser takes any bytes whatever and
either returns its value or raises `ValueRefusedError`; size and nesting are bounded before anything is built.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from garrison.ipc.messages import LOG_LEVELS, LogLevel
from garrison.supervisor.keys import MAX_GROUPS, KeyGrammarError, check_component, shown
from garrison.supervisor.settings.schema import LEVEL_SYNONYMS

MAX_INLINE_BYTES = 4096
"""Largest plugin document inside its key; larger ones are bodies that any number of hosts share."""

MAX_VALUE_BYTES = 64 * 1024
"""Largest value of any other key, bytes."""

MAX_BODY_BYTES = 960 * 1024
"""Largest body, bytes, both as stored and as msgpack: settings and rules of one worker, each of this size, and
the file's settings still fit one frame of 2 MiB."""

MAX_DEPTH = 32
"""Deepest nesting of a JSON document."""

_SHOWN = 60

Action: TypeAlias = Literal["start", "stop", "freeze"]
ACTIONS: tuple[Action, ...] = ("start", "stop", "freeze")

_REFERENCE = re.compile(r"id:([0-9a-fA-F]{64})")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_MAX_SERVERS = 32
_MAX_PORT = 65535

T = TypeVar("T")


class ValueRefusedError(ValueError):
    """A value fails its check. The text says what is wrong with it; it is shown beside the key."""


class KillValue(msgspec.Struct, frozen=True):
    """A killswitch as JSON. Fields that are not known are ignored; ``engaged`` must be there."""

    engaged: bool
    reason: str = ""
    by: str = ""
    at: str = ""


class SinkChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where events go. No paths: what writes to the store must not choose which files root writes."""

    backend: Literal["file", "kafka"]
    bootstrap_servers: Annotated[list[str], msgspec.Meta(max_length=_MAX_SERVERS)] = []
    topic: str = ""


class MasterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The ``master`` document. What is None stays as in the file.

    Attributes:
        log_level: Of the master.
        heartbeat_seconds: Between two heartbeats.
        groups: The host's groups, from the most to the least specific.
        aggregate: Caps of everything together, as in the file; checked where the file's own values are known.
        release_spread: Seconds over which a release of the killswitch spreads.
        sink: Where events go.
    """

    log_level: LogLevel | None = None
    heartbeat_seconds: Annotated[float, msgspec.Meta(ge=5, le=3600)] | None = None
    groups: Annotated[list[str], msgspec.Meta(max_length=MAX_GROUPS)] | None = None
    aggregate: dict[str, Any] | None = None
    release_spread: Annotated[float, msgspec.Meta(ge=0, le=3600)] | None = None
    sink: SinkChoice | None = None


class _ActionValue(msgspec.Struct):
    action: str


def text_of(value: bytes, limit: int = MAX_VALUE_BYTES) -> str:
    """Return a value as text without the white space (and byte order mark) around it.

    Raises:
        ValueRefusedError: It is longer than `limit` bytes, or no UTF-8.
    """
    if len(value) > limit:
        raise ValueRefusedError(f"{len(value)} bytes; at most {limit} are allowed")
    try:
        return value.decode().removeprefix("\ufeff").strip()
    except UnicodeDecodeError as error:
        raise ValueRefusedError(f"not UTF-8 at byte {error.start}") from error


def document_of(value: bytes, limit: int = MAX_VALUE_BYTES) -> Any:
    """Return the JSON document that a value is.

    Raises:
        ValueRefusedError: It is too long, too deep, no JSON, or holds a number that cannot be sent on.
    """
    document: Any = _decode(text_of(value, limit), object)
    _check_depth(document)
    try:
        size = len(msgspec.msgpack.encode(document))
    except (OverflowError, ValueError) as error:
        raise ValueRefusedError(f"a number is out of range: {error}") from error
    if size > MAX_BODY_BYTES:
        raise ValueRefusedError(f"{size} bytes as msgpack; at most {MAX_BODY_BYTES} are allowed")
    return document


def object_of(value: bytes, limit: int = MAX_VALUE_BYTES) -> dict[str, Any]:
    """Return the JSON object that a value is.

    Raises:
        ValueRefusedError: As `document_of`, or it is another kind of document.
    """
    document = document_of(value, limit)
    if not isinstance(document, dict):
        raise ValueRefusedError(f"a JSON object is needed, not {_kind(document)}")
    return document


def rules_of(value: bytes, limit: int = MAX_VALUE_BYTES) -> Any:
    """Return a rules document: a JSON object or array.

    Raises:
        ValueRefusedError: As `document_of`, or it is another kind of document.
    """
    document = document_of(value, limit)
    if not isinstance(document, (dict, list)):
        raise ValueRefusedError(f"a JSON object or array is needed, not {_kind(document)}")
    return document


def action_of(value: bytes) -> Action:
    """Return ``start``, ``stop`` or ``freeze``, in any case, as text, as a JSON string or as ``{"action": …}``.

    Raises:
        ValueRefusedError: It is none of them.
    """
    text = text_of(value)
    if text.startswith("{"):
        text = _decode(text, _ActionValue).action
    word = _word(text)
    for action in ACTIONS:
        if word == action:
            return action
    raise ValueRefusedError(f"{shown(text, _SHOWN)!r} is not one of {', '.join(ACTIONS)}")


def log_level_of(value: bytes) -> LogLevel:
    """Return a syslog level by its name, in any case, as text or as a JSON string.

    Raises:
        ValueRefusedError: It is none.
    """
    text = text_of(value)
    word = _word(text)
    for level in LOG_LEVELS:
        if word == level:
            return level
    if word in LEVEL_SYNONYMS:
        return LEVEL_SYNONYMS[word]
    raise ValueRefusedError(f"{shown(text, _SHOWN)!r} is not one of {', '.join(LOG_LEVELS)}")


def killswitch_of(value: bytes) -> KillValue:
    """Return what a killswitch says: ``on``, ``off`` (any case, text or JSON string) or a `KillValue` as JSON.

    Raises:
        ValueRefusedError: It cannot be read. That counts as engaged: the caller says so.
    """
    text = text_of(value)
    if text.startswith("{"):
        said = _decode(text, KillValue)
        return KillValue(said.engaged, shown(said.reason), shown(said.by), shown(said.at))
    word = _word(text)
    if word == "on":
        return KillValue(engaged=True)
    if word == "off":
        return KillValue(engaged=False)
    raise ValueRefusedError(f"{shown(text, _SHOWN)!r} is neither on nor off" if text else "it is empty")


def master_of(value: bytes) -> MasterSettings:
    """Return the master's settings.

    Raises:
        ValueRefusedError: A field is unknown, of another type or out of its range.
    """
    object_of(value)
    settings = _decode(text_of(value), MasterSettings)
    try:
        for name in settings.groups or ():
            check_component(name, "the group name")
    except KeyGrammarError as error:
        raise ValueRefusedError(str(error)) from error
    if settings.sink is not None:
        check_servers(settings.sink.bootstrap_servers)
        if settings.sink.topic:
            check_topic(settings.sink.topic)
    return settings


def kafka_servers_of(value: bytes) -> tuple[str, ...]:
    """Return ``host[:port]`` of each server, from a list with commas, a JSON string or a JSON array.

    Raises:
        ValueRefusedError: One of them is no address, or there are none or too many.
    """
    text = text_of(value)
    if text.startswith("[") and '"' in text:  # else the address of an IPv6 server
        servers = _decode(text, list[str])
    else:
        servers = [part.strip() for part in _unquote(text).split(",") if part.strip()]
    if not servers:
        raise ValueRefusedError("no server is named")
    check_servers(servers)
    return tuple(servers)


def kafka_topic_of(value: bytes) -> str:
    """Return the name of a topic, from text or a JSON string.

    Raises:
        ValueRefusedError: Kafka allows no such name.
    """
    topic = _unquote(text_of(value))
    check_topic(topic)
    return topic


def body_reference(value: bytes) -> str | None:
    """Return the SHA-256 (lower case) that ``id:<sha256>`` refers to; None where the value is no reference.

    Raises:
        ValueRefusedError: It begins like a reference and is none.
    """
    # A reference is short: nothing longer is decoded to find out.
    head = value[:256].removeprefix(b"\xef\xbb\xbf").strip()
    if not head.lower().startswith((b"id:", b'"id:')):
        return None
    found = _REFERENCE.fullmatch(_unquote(text_of(value, MAX_INLINE_BYTES)))
    if found is None:
        raise ValueRefusedError("not id: and the 64 hexadecimal digits of a SHA-256")
    return found.group(1).lower()


def _decode(text: str, kind: type[T]) -> T:
    try:
        # Nesting is bounded by the interpreter's recursion limit here and by MAX_DEPTH afterwards.
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueRefusedError(shown(f"{error}")) from error


def _unquote(text: str) -> str:
    return str(_decode(text, str)).strip() if text.startswith('"') else text


def _word(text: str) -> str:
    return _unquote(text).lower()


def _check_depth(document: object) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        if not below:
            return
        level = below
    raise ValueRefusedError(f"nested deeper than {MAX_DEPTH} levels")


def check_servers(servers: list[str]) -> None:
    """Check the addresses of servers.

    Raises:
        ValueRefusedError: One of them is no ``host`` or ``host:port``, or there are too many.
    """
    if len(servers) > _MAX_SERVERS:
        raise ValueRefusedError(f"{len(servers)} servers; at most {_MAX_SERVERS} are allowed")
    for server in servers:
        found = _SERVER.fullmatch(server)
        if found is None or (found.group(1) and not 0 < int(found.group(1)) <= _MAX_PORT):
            raise ValueRefusedError(f"{shown(server, _SHOWN)!r} is not host or host:port")


def check_topic(topic: str) -> None:
    """Check the name of a topic.

    Raises:
        ValueRefusedError: Kafka allows no such name.
    """
    if not _TOPIC.fullmatch(topic) or topic in {".", ".."}:
        raise ValueRefusedError(
            f"{shown(topic, _SHOWN)!r} is no topic: 1 to 249 letters, digits, dots, hyphens and underscores"
        )


def _kind(document: object) -> str:
    names = {str: "a string", bool: "a truth value", list: "an array", type(None): "null"}
    return names.get(type(document), "a number")
