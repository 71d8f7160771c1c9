"""What packages are made from, as one digest: whether those of the last build are still the ones of this checkout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from builder import project
from builder.run import TOOLS

MADE_FROM = (*project.SOURCES, "CHANGELOG.md", "requirements", "packaging", "systemd")
"""Files and folders of the checkout. Some in the folders go into no package; to change one costs a build too."""


def digest(checkout: Path, env: dict[str, str], *options: str) -> str:
    """Return the SHA-256 of everything that decides what a build makes.

    That is the checkout's files, the time that stands in everything, the interpreter that is bundled, the tools of
    this system, and options of the build. Which libraries are bundled only the build finds out; see `remember`.

    Args:
        checkout: Top folder of the project.
        env: From `run.environment`.
        options: More that decides, such as the compression.
    """
    made = hashlib.sha256()
    for path in _files(checkout):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        made.update(f"{path.relative_to(checkout)} {path.stat().st_mode & 0o100:o} {content}\n".encode())
    for fact in (env["SOURCE_DATE_EPOCH"], sys.version, *_interpreter(), *_tools(env), *options):
        made.update(f"{fact}\n".encode())
    return made.hexdigest()


def unchanged(record: Path, made_from: str, output: Path) -> bool:
    """Tell whether a folder has the packages that were made from the same, byte for byte.

    Args:
        record: File that `remember` wrote.
        made_from: The digest of now.
        output: Folder of the packages.
    """
    try:
        known, _, sums = record.read_text(encoding="utf-8").partition("\n")
        return known == made_from and all(
            hashlib.sha256((output / name).read_bytes()).hexdigest() == wanted
            for wanted, name in (line.split("  ", 1) for line in sums.splitlines())
        )
    except (OSError, ValueError):
        return False


def remember(record: Path, made_from: str, sums: str, libraries: Iterable[Path]) -> None:
    """Write down what packages were made from.

    Args:
        record: File for it; not in the packages' folder, for it is nothing to hand on.
        made_from: The digest, taken before the build.
        sums: The packages' checksums, as ``SHA256SUMS`` has them.
        libraries: Those of this system that were bundled.
    """
    bundled = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.absolute()}\n" for path in sorted(libraries)
    )
    record.write_text(f"{made_from}\n{sums}{bundled}", encoding="utf-8")


def _files(checkout: Path) -> Iterator[Path]:
    for name in MADE_FROM:
        top = checkout / name
        if top.is_file():
            yield top
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(set(folders) - {"__pycache__"})
            yield from (Path(folder, file) for file in sorted(files))


def _interpreter() -> Iterator[str]:
    program = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    # libpython is the interpreter where it is a shared library; both are replaced together.
    facts = program.stat()
    yield f"{program} {facts.st_size} {facts.st_mtime_ns}"


def _tools(env: dict[str, str]) -> Iterator[str]:
    for tool in TOOLS:
        told = subprocess.run([tool, "--version"], env=env, capture_output=True, text=True, check=False).stdout
        yield told.partition("\n")[0]
