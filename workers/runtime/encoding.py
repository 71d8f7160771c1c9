"""From what a module has in hand to bytes: JSON lines for events, text for log lines and errors."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgspec


class UnencodableError(ValueError):
    """A document has no JSON form. The text says which part and why."""


def encode_line(document: Mapping[str, Any]) -> bytes:
    r"""Return a document as one line of JSON with its newline.

    File names that are no UTF-8 come from Python as lone surrogates, which JSON cannot carry: each such byte
    is written as ``\xNN``. Bytes objects become base64, sets arrays, paths and exceptions text.

    Raises:
        UnencodableError: Some object in it has no JSON form.
    """
    try:
        line = _encode([document])
    except UnicodeEncodeError:
        # Rare: the walk is paid for only by a document that needs it.
        line = _encode_sanitised(document)
    # Encoding runs code of the objects' own (attributes of dataclasses, __str__): nothing that it raises may
    # reach the module, which asked for an event to be sent and not for an exception.
    except Exception as error:
        raise UnencodableError(f"{type(error).__name__}: {printable(str(error), 512)}") from error
    if line.find(b"\n") != len(line) - 1:
        raise UnencodableError("raw JSON with a newline in it")
    return line


def _encode_sanitised(document: Mapping[str, Any]) -> bytes:
    try:
        return _encode([sanitise(document)])
    except UnicodeEncodeError as error:
        raise UnencodableError(f"text that is no Unicode inside an object: {error}") from error
    except Exception as error:
        raise UnencodableError(f"{type(error).__name__}: {printable(str(error), 512)}") from error


def _hook(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, deque):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if type(value).__module__ == "ipaddress":  # known by name, because importing it costs a megabyte
        return str(value)
    raise TypeError(f"an object of type {type(value).__name__} has no JSON form")


_encode = msgspec.json.Encoder(enc_hook=_hook).encode_lines


def sanitise(value: Any) -> Any:
    """Return a copy of a document in which every text can be encoded as UTF-8."""
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, Mapping):
        return {sanitise(key): sanitise(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset | deque):
        return [sanitise(item) for item in value]
    if isinstance(value, os.PathLike | BaseException):
        return sanitise(_hook(value))
    return value


def utf8(text: str) -> str:
    r"""Return the text with every lone surrogate replaced: a smuggled byte by ``\xNN``, others by ``\uNNNN``."""
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = text.encode("utf-8", "backslashreplace")
    return raw.decode("utf-8", "backslashreplace")


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    0x09: " ",
    0x0A: "\\n",
    0x0D: "\\r",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def printable(text: str, limit: int) -> str:
    """Return the text as one line of valid UTF-8 without control characters, at most `limit` bytes long.

    What a module logs may quote what an attacker named a file: it must not break or forge lines.
    """
    # Nothing becomes shorter by escaping, so what is cut off first would not have fitted anyway.
    line = utf8(text[: limit + 1]).translate(_CONTROLS)
    raw = line.encode()
    if len(raw) <= limit:
        return line
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"
