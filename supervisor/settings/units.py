"""Sizes and durations as people write them: ``"64 MiB"``, ``"250ms"``. Pure.

A bare number is bytes or seconds. A unit is not case-sensitive. ``K``, ``M`` and ``G`` alone are refused,
because half of all tools mean 1000 by them and the other half 1024.
"""

from __future__ import annotations

import re

BYTE_UNITS = {
    "B": 1,
    "kB": 1000,
    "KiB": 1024,
    "MB": 1000**2,
    "MiB": 1024**2,
    "GB": 1000**3,
    "GiB": 1024**3,
    "TB": 1000**4,
    "TiB": 1024**4,
}
SECOND_UNITS = {"ms": (1, 1000), "s": (1, 1), "m": (60, 1), "min": (60, 1), "h": (3600, 1)}
"""Unit to seconds, as numerator and denominator, so that whole milliseconds come out exactly."""

BYTES_HELP = 'a whole number of bytes, or a string such as "64 MiB" (B, kB, KiB, MB, MiB, GB, GiB, TB, TiB)'
SECONDS_HELP = 'a number of seconds, or a string such as "250ms", "5s", "2m", "1h"'

# Digits are bounded so that no input costs more than a few machine words of arithmetic.
_QUANTITY = re.compile(r"\s*([0-9]{1,18})(?:\.([0-9]{1,9}))?\s*([A-Za-z]*)\s*", re.ASCII)
_BYTE_FACTORS = {unit.lower(): factor for unit, factor in BYTE_UNITS.items()}


def parse_bytes(text: str) -> int:
    """Return a size in bytes. A fraction is cut to whole bytes: ``"1.5 KiB"`` is 1536.

    Raises:
        ValueError: It is no size; the text says what one looks like.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"is not a size; write {BYTES_HELP}")
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
    if unit.lower() in ("k", "m", "g", "t"):
        letter = unit.upper()
        raise ValueError(f"has the ambiguous unit {unit!r}; write {letter}iB (1024) or {letter}B (1000)")
    factor = _BYTE_FACTORS.get(unit.lower() or "b")
    if factor is None:
        raise ValueError(f"has the unknown unit {unit!r}; write {BYTES_HELP}")
    return int(whole + fraction) * factor // int(10 ** len(fraction))


def parse_seconds(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: It is no duration; the text says what one looks like.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"is not a duration; write {SECONDS_HELP}")
    whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
    factor = SECOND_UNITS.get(unit.lower() or "s")
    if factor is None:
        raise ValueError(f"has the unknown unit {unit!r}; write {SECONDS_HELP}")
    numerator, denominator = factor
    return int(whole + fraction) * numerator / (int(10 ** len(fraction)) * denominator)


def format_bytes(count: int) -> str:
    """Return the shortest exact text, which `parse_bytes` reads back as the same number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = BYTE_UNITS[unit]
        if count >= factor and count % factor == 0:
            return f"{count // factor} {unit}"
    return f"{count} B"
