"""Builds the packages once for all tests, from a copy of the checkout that nobody changes meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TOOLS = ("dpkg-deb", "ldd", "objdump", "rpmbuild", "strip")
EPOCH = 1_700_000_000
FOLDERS = ("supervisor", "workers", "ipc", "fleet", "packaging", "systemd", "requirements")
COPIED = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", *FOLDERS)
OFFLINE = ("NewConnectionError", "ConnectTimeoutError", "Max retries exceeded", "Temporary failure in name resolution")


@dataclass(frozen=True, slots=True)
class Built:
    """What the builds left.

    Attributes:
        folder: Everything that the build made.
        again: The same of a second build, in another place, with another umask, time zone and language.
        package: The DEB.
        rpm: The RPM.
        root: The DEB's tree, unpacked.
        work: The folder in which the first was built.
        report: What the first build printed.
    """

    folder: Path
    again: Path
    package: Path
    rpm: Path
    root: Path
    work: Path
    report: str


def build_twice(folder: Path) -> Built:
    """Build two packages at the same time from the same copy, and unpack one.

    Skips where a tool is missing or no package index is reached.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the package build needs {', '.join(missing)} (apt-get install binutils dpkg rpm)")
    source = folder / "source"
    source.mkdir()
    for name in COPIED:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(CHECKOUT / name, source / name)
    places = (folder / "one", folder / "another" / "deeper" / "place")
    surroundings = ({"LC_ALL": "C", "TZ": "UTC"}, {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kolkata", "PYTHONHASHSEED": "5"})
    builds = [
        subprocess.Popen(
            [
                *(sys.executable, source / "packaging" / "build.py"),
                *("--work", place / "work", "--output", place / "dist"),
                "--quick",
            ],
            env={**os.environ, **around, "SOURCE_DATE_EPOCH": str(EPOCH), "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=umask,
        )
        for place, around, umask in zip(places, surroundings, (0o022, 0o077), strict=True)
    ]
    try:
        reports = [process.communicate(timeout=300)[0] for process in builds]
    finally:
        for process in builds:
            if process.poll() is None:
                process.kill()
                process.communicate()
    for process, report in zip(builds, reports, strict=True):
        if process.returncode != 0 and any(sign in report for sign in OFFLINE):
            pytest.skip("the package build reaches no package index")
        assert process.returncode == 0, report
    first, second = (place / "dist" for place in places)
    package, rpm = next(first.glob("*.deb")), next(first.glob("*.rpm"))
    root = folder / "root"
    subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return Built(first, second, package, rpm, root, places[0] / "work", reports[0])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Return what two builds made; once for all tests."""
    folder = tmp_path_factory.mktemp("packages")
    yield build_twice(folder)
    shutil.rmtree(folder)


def field(package: Path, name: str) -> str:
    """Return a field of a package's control file."""
    asked = subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def control_file(package: Path, name: str) -> str:
    """Return a file of a package's control archive."""
    asked = subprocess.run(["dpkg-deb", "-I", package, name], capture_output=True, text=True, check=True)
    return asked.stdout


def rpm_query(package: Path, form: str) -> str:
    """Return what rpm says of a package file; ``form`` is a query format."""
    asked = subprocess.run(
        ["rpm", "-qp", "--nosignature", "--qf", form, package],
        # No configuration but rpm's own.
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout


def files_below(top: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time in ns of every file and folder below one."""
    found = {}
    for path in top.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found
