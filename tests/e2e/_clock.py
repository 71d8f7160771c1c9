"""A clock that jumps, for one program: libfaketime with an offset that is read from a file at each look."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest

_LIBRARIES = sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))

needs_faketime = pytest.mark.skipif(not _LIBRARIES, reason="needs libfaketime (apt-get install faketime)")


def faked(offset: Path) -> dict[str, str]:
    """Return the environment in which a program sees the wall clock moved by what a file says, such as ``+1d``."""
    return {
        "LD_PRELOAD": _LIBRARIES[0],
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
