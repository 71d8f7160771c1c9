"""Text for people: numbers with units, and strings of unknown origin made harmless. Pure, no imports to speak of."""

from __future__ import annotations

import re
from typing import Final

# Control characters (C0, DEL, C1) steer a terminal; bidirectional controls, zero-width characters, line and
# paragraph separators make a line look like another one; lone surrogates cannot be written at all.
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_UNSAFE_BUT_NEWLINE: Final = re.compile(_UNSAFE.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def sanitise(text: str, *, newlines: bool = False, limit: int | None = None) -> str:
    r"""Return a text that cannot do anything to a terminal: unsafe characters become ``\x1b``, ``\u202e``.

    Args:
        text: Anything, from anywhere.
        newlines: Keep line breaks.
        limit: Cut to so many characters, with an ellipsis.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return (_UNSAFE_BUT_NEWLINE if newlines else _UNSAFE).sub(_escape, text)


def safe_json(document: str) -> str:
    """Return the same JSON document with unsafe characters as JSON escapes.

    JSON allows control characters inside strings only as escapes, but lets C1 and bidirectional controls through;
    outside of strings none of them can stand but white space, which stays.
    """
    return _UNSAFE.sub(_json_escape, document)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code in (0x09, 0x0A, 0x0D):
        return match[0]
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def size(count: float) -> str:
    """Return bytes in a form of at most six characters: ``512``, ``34.1M``, ``96M``."""
    value = float(count)
    for unit in ("", "K", "M", "G", "T"):
        if abs(value) < 1023.5 or unit == "T":
            break
        value /= 1024
    rounded = f"{value:.1f}" if abs(value) < 99.95 and unit else f"{value:.0f}"
    return rounded.removesuffix(".0") + unit


def percent(value: float) -> str:
    """Return a percentage without its sign, with one decimal where that says something."""
    return f"{value:.1f}".removesuffix(".0")


def duration(seconds: float) -> str:
    """Return seconds as the two units that matter: ``45 s``, ``3 min 20 s``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if part) or "0 s"


def count(number: int) -> str:
    """Return a number with thin groups of three, as ``1 234 567``."""
    return f"{number:,}".replace(",", " ")


def plural(number: int, one: str, many: str = "") -> str:
    """Return ``1 trip`` or ``2 trips``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"
