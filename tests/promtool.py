"""Prometheus' own judge of rules, installed or unpacked from Debian's package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.debian import unpack

DEBIAN = Path(sys.prefix) / "prometheus-debian"
"""Where `python -m tests.promtool` puts it: beside the other tools of the checkout."""
MISSING = f"needs promtool (apt-get install prometheus, or {sys.executable} -m tests.promtool)"


def promtool() -> Path | None:
    """Return the program, or None where there is none."""
    for path in (shutil.which("promtool"), DEBIAN / "usr/bin/promtool"):
        if path is not None and Path(path).exists():
            return Path(path)
    return None


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it; only where it is there."""
    program = promtool()
    assert program is not None
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, check=False)


if __name__ == "__main__":
    if promtool() is None and (problem := unpack(("prometheus",), DEBIAN)):
        sys.stdout.write(f"no promtool: {problem}\n")
    else:
        sys.stdout.write(f"promtool is {promtool()}\n")
