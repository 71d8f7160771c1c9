"""A newer version that a package could not put into service: its scripts leave a note beside the one they put back."""

from __future__ import annotations

import os
import sys
from typing import Final

NOTE: Final = ".refused"
"""Below ``sys.prefix``: the version on the first line, then why."""

_MAX_BYTES: Final = 4096


def refused_upgrade(prefix: str = sys.prefix) -> str:
    """Return what there is to say of an upgrade that was taken back; "" where there was none."""
    try:
        with open(os.path.join(prefix, NOTE), encoding="utf-8", errors="replace") as file:
            version, _, why = file.read(_MAX_BYTES).partition("\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"the note of an upgrade that was taken back cannot be read: {error}"
    return (
        f"the upgrade to {version.strip() or 'another version'} was taken back, this version was put back:"
        f" {' '.join(why.split()) or 'no reason given'}; install another version, or that one again"
    )
