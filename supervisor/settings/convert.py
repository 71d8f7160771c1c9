"""From a parsed document to typed settings: every value is checked, every problem is kept. Pure.

This is done by hand instead of with `msgspec.convert`, which stops at the first problem and cannot name the
nearest valid key, the unit or the remedy.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from garrison.ipc.rights import CAPABILITIES
from garrison.supervisor.settings import units
from garrison.supervisor.settings.fields import Setting, Shape, settings_of
from garrison.supervisor.settings.problems import Collector
from garrison.supervisor.settings.schema import BYTES, LEVEL_SYNONYMS, SECONDS

S = TypeVar("S", bound=msgspec.Struct)

MAX_DEPTH = 16
"""Deepest nesting of a free table. Deeper ones could exhaust the stack of whoever encodes them."""

_WORD = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class _InvalidError(ValueError):
    """A value cannot be used; it has been noted in the collector."""


def join(*parts: str) -> str:
    """Return a dotted key; parts that are no bare TOML key are quoted."""
    return ".".join(part if _WORD.fullmatch(part) else '"' + show(part).strip("'\"") + '"' for part in parts if part)


def show(value: object) -> str:
    """Return a value for a message: short, on one line."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def convert(struct: type[S], raw: object, key: str, base: S, problems: Collector) -> S:
    """Return `base` with the values of a table put over it.

    Args:
        struct: What the table must look like.
        raw: The table as parsed.
        key: Dotted key of the table, empty for the whole document.
        base: Values for what the table does not say.
        problems: Takes what is wrong; a wrong value leaves that of `base` in place.
    """
    if not isinstance(raw, dict):
        problems.add(key, f"expected a table, got {_kind(raw)}")
        return base
    settings = settings_of(struct)
    changes: dict[str, Any] = {}
    for name, value in raw.items():
        setting = settings.get(name) if isinstance(name, str) else None
        if setting is None:
            _unknown(str(name), settings, key, problems)
            continue
        where = f"{key}.{name}" if key else str(name)
        try:
            changes[setting.name] = _value(setting.shape, value, where, getattr(base, setting.name), problems)
        except _InvalidError:
            continue
    return msgspec.structs.replace(base, **changes)


def _value(shape: Shape, raw: object, key: str, base: object, problems: Collector) -> object:
    if shape.table is not None:
        if not isinstance(base, shape.table):  # a table of tables has no base for a new name
            base = shape.table()
        return convert(shape.table, raw, key, base, problems)
    if shape.tables is not None:
        return _tables(shape, raw, key, problems)
    origin = get_origin(shape.bare)
    if origin is tuple:
        return _list(shape, raw, key, problems)
    if origin is dict:
        return _free(shape, raw, key, problems)
    return _leaf(shape, raw, key, problems)


def _tables(shape: Shape, raw: object, key: str, problems: Collector) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise _refuse(problems, key, f"expected a table, got {_kind(raw)}")
    _length(shape, len(raw), "tables", key, problems)
    return {
        str(name): _value(shape.item, value, f"{key}.{join(str(name))}", None, problems) for name, value in raw.items()
    }


def _list(shape: Shape, raw: object, key: str, problems: Collector) -> tuple[object, ...]:
    if not isinstance(raw, list | tuple):
        remedy = f"Write [{show(raw)}]" if isinstance(raw, str) else ""
        raise _refuse(problems, key, f"expected a list, got {_kind(raw)}", remedy)
    _length(shape, len(raw), "items", key, problems)
    items = tuple(_leaf(shape.item, item, f"{key}[{index}]", problems) for index, item in enumerate(raw))
    if shape.extra.get("unique"):
        twice = next((item for index, item in enumerate(items) if item in items[:index]), None)
        if twice is not None:
            raise _refuse(problems, key, f"{show(twice)} is listed twice", "Leave one of them out")
    return items


def _free(shape: Shape, raw: object, key: str, problems: Collector) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise _refuse(problems, key, f"expected a table, got {_kind(raw)}")
    _length(shape, len(raw), "entries", key, problems)
    if get_args(shape.bare)[1] is str:
        return {
            str(name): _leaf(shape.item, value, f"{key}.{join(str(name))}", problems) for name, value in raw.items()
        }
    _plain(raw, key, problems, MAX_DEPTH)
    return raw


def _plain(raw: object, key: str, problems: Collector, depth: int) -> None:
    """Refuse what JSON or msgpack cannot carry to a worker."""
    if depth < 0:
        raise _refuse(problems, key[:80], f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(raw, dict):
        for name, value in raw.items():
            _plain(value, f"{key}.{join(str(name))}", problems, depth - 1)
    elif isinstance(raw, list | tuple):
        for index, value in enumerate(raw):
            _plain(value, f"{key}[{index}]", problems, depth - 1)
    elif isinstance(raw, bool | str) or raw is None:
        return
    elif isinstance(raw, int):
        if not -(2**63) <= raw < 2**63:
            raise _refuse(problems, key, "is an integer of more than 64 bits", "Write it as a string")
    elif isinstance(raw, float):
        if not math.isfinite(raw):
            raise _refuse(problems, key, f"is {raw}, which JSON cannot carry", "Write a finite number")
    else:
        raise _refuse(problems, key, f"is {_kind(raw)}, which JSON cannot carry", "Put it in quotes")


def _leaf(shape: Shape, raw: object, key: str, problems: Collector) -> object:
    bare = shape.bare
    if get_origin(bare) is Literal:
        return _choice(shape, raw, key, problems)
    if bare is bool:
        if not isinstance(raw, bool):
            raise _refuse(
                problems, key, f"expected true or false, got {_kind(raw)}", "Write true or false, without quotes"
            )
        return raw
    if bare is str:
        return _string(shape, raw, key, problems)
    return _number(shape, raw, key, problems)


def _choice(shape: Shape, raw: object, key: str, problems: Collector) -> str:
    allowed = get_args(shape.bare)
    value = raw
    if isinstance(value, str) and shape.extra.get("form") == "level":
        value = LEVEL_SYNONYMS.get(value.lower(), value.lower())
    if isinstance(value, str) and value in allowed:
        return value
    if isinstance(raw, str):
        what = f"is {show(raw)}; allowed is {', '.join(allowed)}"
        near = nearest(raw, allowed)
        raise _refuse(problems, key, what, f'Did you mean "{near}"?' if near else "")
    raise _refuse(problems, key, f"expected one of {', '.join(allowed)}, got {_kind(raw)}", "Put it in quotes")


def _string(shape: Shape, raw: object, key: str, problems: Collector) -> str:
    if not isinstance(raw, str):
        raise _refuse(problems, key, f"expected a string, got {_kind(raw)}", "Put it in quotes")
    if "\0" in raw:
        raise _refuse(problems, key, "contains a NUL character")
    _length(shape, len(raw), "characters", key, problems)
    if shape.pattern is not None and re.fullmatch(shape.pattern, raw, re.ASCII) is None:
        wanted = shape.extra.get("pattern_help", f"a string that matches {shape.pattern}")
        raise _refuse(problems, key, f"is {show(raw)}; expected {wanted}")
    check = _FORMS.get(str(shape.extra.get("form", "")))
    if check is not None and not (raw == "" and "automatic" in shape.extra):
        try:
            check(raw)
        except ValueError as error:
            raise _refuse(problems, key, f"is {show(raw)}; {error}") from None
    return raw


def _number(shape: Shape, raw: object, key: str, problems: Collector) -> int | float:
    value: object = raw
    if isinstance(raw, str) and shape.unit in _PARSERS:
        try:
            value = _PARSERS[shape.unit](raw)
        except ValueError as error:
            raise _refuse(problems, key, f"{show(raw)} {error}") from None
    number: int | float
    if isinstance(value, bool) or not isinstance(value, int | float):
        remedy = "Write it without quotes" if isinstance(raw, str) else ""
        raise _refuse(problems, key, f"expected {describe_type(shape)}, got {_kind(raw)}", remedy)
    number = value
    if shape.bare is int and isinstance(number, float):
        raise _refuse(problems, key, f"expected {describe_type(shape)}, got {show(number)}", "Write a whole number")
    # The comparison is written so that NaN, which TOML has, fails it.
    if (shape.ge is not None and not number >= shape.ge) or (shape.le is not None and not number <= shape.le):
        raise _refuse(problems, key, f"is {show(raw)}; allowed is {describe_range(shape)}")
    return float(number) if shape.bare is float else number


def describe_type(shape: Shape) -> str:
    """Return what kind of value a setting takes, in words, its unit included."""
    if shape.unit == BYTES:
        return units.BYTES_HELP
    if shape.unit == SECONDS:
        return units.SECONDS_HELP
    word = "a whole number" if shape.bare is int else "a number"
    return f"{word} ({shape.unit})" if shape.unit else word


def describe_range(shape: Shape) -> str:
    """Return the range of a number in words, with its unit; empty where there is none."""
    if shape.ge is None or shape.le is None:
        return ""
    if shape.unit == BYTES:
        return f"{units.format_bytes(int(shape.ge))} to {units.format_bytes(int(shape.le))}"
    return f"{shape.ge} to {shape.le} {shape.unit}".rstrip()


def nearest(word: str, words: Any) -> str:
    """Return the most similar of some words, or an empty string where none is similar."""
    import difflib  # only ever needed for an error message

    matches = difflib.get_close_matches(word[:80], list(words), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def check_hostname(name: str) -> str:
    """Return a host name that can be a part of a key.

    Raises:
        ValueError: It cannot, with the reason.
    """
    if not name:
        raise ValueError("a host name must not be empty")
    if len(name) > 253:
        raise ValueError(f"a host name has at most 253 characters, this one has {len(name)}")
    if "/" in name:
        raise ValueError("a host name must not contain '/', which separates the parts of a key")
    if name.startswith("@"):
        raise ValueError("a host name must not start with '@', which marks @all and @group in keys")
    if not name.isascii() or not name.isprintable() or " " in name:
        raise ValueError("a host name has only printable ASCII characters and no spaces")
    if name.startswith("."):
        raise ValueError("a host name must not start with '.': a directory store does not look at such files")
    return name


def _check_path(path: str) -> None:
    if path.startswith("~"):
        raise ValueError("'~' is not expanded; write the whole path")
    if not path.startswith("/"):
        raise ValueError("a path must be absolute, because the agent runs in no particular folder")
    if ".." in path.split("/"):
        raise ValueError("a path must not contain '..'")
    if not path.isprintable():
        raise ValueError("a path must not contain control characters")


def _check_cgroup(path: str) -> None:
    if not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError("a cgroup path must not contain '.' or '..'")


def _check_endpoint(text: str) -> None:
    from garrison.supervisor.stores.etcd.endpoints import parse_endpoint  # only where there are any

    parse_endpoint(text)


def _check_capability(text: str) -> None:
    if text == "none" or text in CAPABILITIES:
        return
    word = text.lower().removeprefix("cap_")
    near = word if word in CAPABILITIES else nearest(word, CAPABILITIES)
    raise ValueError(
        f"it is no capability{f'; did you mean {chr(34)}{near}{chr(34)}?' if near else ', see capabilities(7)'}"
    )


def _check_metrics(text: str) -> None:
    from garrison.supervisor.metrics.address import parse_address  # only where there is one

    parse_address(text)


def _check_textfile(path: str) -> None:
    _check_path(path)
    if not path.endswith(".prom") or path.endswith("/.prom"):
        raise ValueError("node_exporter reads only files whose name ends with .prom")


def _check_server(text: str) -> None:
    from garrison.supervisor.stores.values import check_servers  # only where there is one

    check_servers([text])


def _check_topic(text: str) -> None:
    from garrison.supervisor.stores.values import check_topic  # as above

    check_topic(text)


_FORMS: dict[str, Any] = {
    "path": _check_path,
    "hostname": check_hostname,
    "cgroup": _check_cgroup,
    "endpoint": _check_endpoint,
    "server": _check_server,
    "topic": _check_topic,
    "capability": _check_capability,
    "metrics": _check_metrics,
    "textfile": _check_textfile,
}
_PARSERS: dict[str, Any] = {BYTES: units.parse_bytes, SECONDS: units.parse_seconds}


def _length(shape: Shape, length: int, noun: str, key: str, problems: Collector) -> None:
    if shape.max_length is not None and length > shape.max_length:
        raise _refuse(problems, key, f"has {length} {noun}; allowed are at most {shape.max_length}")
    if shape.min_length is not None and length < shape.min_length:
        raise _refuse(problems, key, f"has {length} {noun}; needed are at least {shape.min_length}")


def _unknown(name: str, settings: dict[str, Setting], table: str, problems: Collector) -> None:
    key = f"{table}.{join(name)}" if table else join(name)
    within = [
        f"{table}.{setting.name}".lstrip(".")
        for setting in settings.values()
        if setting.shape.table is not None and name in settings_of(setting.shape.table)
    ]
    near = nearest(name, settings)
    if within:
        remedy = f"It belongs into [{within[0]}]"
    elif near:
        remedy = f'Did you mean "{near}"?'
    else:
        remedy = f"Known here: {', '.join(settings)}"
    problems.add(key, "is no known setting", remedy)


def _refuse(problems: Collector, key: str, what: str, remedy: str = "") -> _InvalidError:
    problems.add(key, what, remedy)
    return _InvalidError(key)


def _kind(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if raw is None:
        return "null"
    if isinstance(raw, str):
        return f"the string {show(raw)}"
    if isinstance(raw, int | float):
        return f"the number {show(raw)}"
    if isinstance(raw, dict):
        return "a table"
    if isinstance(raw, list | tuple):
        return "a list"
    return f"a {type(raw).__name__}"
