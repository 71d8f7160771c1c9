"""Runs tests of the checkout inside of machines: what needs a kernel with cgroup v2 alone, or v1 alone.

The second disk has the interpreter, its environment and the checkout, which stand inside where they stand here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.vm import steps
from tests.vm.image import BUILD
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

CHECKOUT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "supervisor", "workers", "ipc", "fleet", "packaging", "systemd", "tests", "docs")
TESTS = (
    "tests/integration/test_cgroups_caps.py",
    "tests/integration/test_cgroups_entry.py",
    "tests/integration/test_cgroups_kill.py",
    "tests/integration/test_cgroups_start.py",
    "tests/integration/test_nursery.py",
    "tests/integration/test_hostwatch.py",
)
TEST_SECONDS = 900
"""For one file."""


def disk() -> Path:
    """Make the disk anew and return it."""
    target = BUILD / "checkout.ext4"
    skipped = shutil.ignore_patterns("__pycache__", "test", "*.a", "tkinter", "idlelib", "ensurepip", "grpc_tools")
    places = [Path(sys.base_prefix), Path(sys.prefix)]
    with tempfile.TemporaryDirectory(dir=BUILD) as made:
        root = Path(made) / "root"
        for place in places:
            shutil.copytree(place, root / place.relative_to("/"), symlinks=True, ignore=skipped, dirs_exist_ok=True)
        for part in PARTS:
            source, copy = CHECKOUT / part, root / (CHECKOUT / part).relative_to("/")
            if source.is_dir():
                shutil.copytree(source, copy, ignore=skipped)
            else:
                shutil.copy(source, copy)
        (root / "libraries").mkdir()
        for library in _libraries():
            shutil.copy(library, root / "libraries" / library.name)
        size = sum(path.lstat().st_size + 4096 for path in root.rglob("*"))
        partial = Path(made) / "disk"
        subprocess.run(
            ["mke2fs", "-q", "-q", "-t", "ext4", "-d", root, "-F", partial, f"{size * 5 // 4 // 1024 + 32768}k"],
            check=True,
            timeout=300,
            stdout=subprocess.DEVNULL,
        )
        partial.replace(target)
    return target


def _libraries() -> set[Path]:
    """Return the libraries that the interpreter's own modules need and Debian's minimum may lack."""
    found = set()
    for module in Path(sys.base_prefix).glob("lib/python3.*/lib-dynload/*.so"):
        listed = subprocess.run(["ldd", module], capture_output=True, text=True, timeout=60, check=False).stdout
        for path in map(Path, re.findall(r"=> (/\S+)", listed)):
            if not re.match(r"(libc|libm|libpthread|libdl|ld-linux.*)\.so", path.name):
                found.add(path)
    return found


def run(machine: Machine, transcript: Transcript, tests: Sequence[str] = TESTS) -> None:
    """Run the tests on a machine that has been started with `disk` as its second disk."""
    steps.booted(machine, transcript)
    places = {str(Path(sys.base_prefix)), str(CHECKOUT)}
    if not Path(sys.prefix).is_relative_to(CHECKOUT):
        places.add(sys.prefix)
    for place in sorted(places):
        machine.run(f"mkdir -p {shlex.quote(place)} && mount --bind /media{shlex.quote(place)} {shlex.quote(place)}")
    environment = (
        "PYTHONDONTWRITEBYTECODE=1 LD_LIBRARY_PATH=/media/libraries HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis"
    )
    python = os.path.join(sys.prefix, "bin", "python")
    for test in tests:
        with transcript.step(test) as say:
            done = machine.try_run(
                f"cd {shlex.quote(str(CHECKOUT))} && {environment} {shlex.quote(python)} -m pytest -q -rfEs"
                f" -p no:cacheprovider --timeout 300 --basetemp /var/tmp/pytest {test}",
                TEST_SECONDS,
            )
            if done.status != 0:
                (BUILD / f"{transcript.name}-{Path(test).stem}.txt").write_text(done.output)
                raise AssertionError(f"{done.output.strip().splitlines()[-1]}: {_failed(done.output)}")
            say(f"{done.output.strip().splitlines()[-1]} {_skipped(done.output)}")


def _failed(output: str) -> str:
    return "; ".join(re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE))


def _skipped(output: str) -> str:
    return "; ".join(
        f"{number} {why}" for number, why in re.findall(r"^SKIPPED \[(\d+)\] \S+: (.*)", output, re.MULTILINE)
    )
