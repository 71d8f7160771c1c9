"""The staging tree as both packages take it: who owns what, modes, times, sizes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.run import BuildError

OWN = ("opt/garrison", "etc/garrison", "usr/share/doc/garrison")
"""Folders that are the package's; every other one is shared with other packages and never removed with it."""

MANIFEST = "MANIFEST"
"""Name of the list of all files below /opt/garrison: `sha256sum -c` reads it, and so does what tidies up after an
upgrade that was taken back."""


ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""What Garrison is built for: the kernel's and RPM's name of it, and Debian's."""


def architecture() -> str:
    """Return the kernel's name of this machine's architecture.

    Raises:
        BuildError: Garrison is not built for it.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise BuildError(f"Garrison is built for {' and '.join(ARCHITECTURES)}, not for {machine}")
    return machine


@dataclass(frozen=True, slots=True)
class Identity:
    """What both packages say of themselves.

    Attributes:
        version: Theirs.
        glibc: The oldest that they run on.
        marks: What stands for the marks in their scripts (`scripts.render`).
    """

    version: str
    glibc: str
    marks: Mapping[str, str]


_PLAIN = re.compile(r"[A-Za-z0-9@%+=:,./_~-]+")


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold a work folder for one build.

    Raises:
        BuildError: Another build is in it.
    """
    work.parent.mkdir(parents=True, exist_ok=True)
    lock = work.with_name(f"{work.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BuildError(f"another build works in {work}: wait for it, or name another folder: --work") from None
        yield


def settle(root: Path, epoch: int) -> int:
    """Give everything below a root the same owner-independent modes and one time.

    Returns:
        The size of all files, in bytes.
    """
    size = 0
    for folder, names, files in os.walk(root, topdown=False):
        for name in (*files, *names):
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                runs = os.path.isdir(path) or os.stat(path).st_mode & 0o100
                os.chmod(path, 0o755 if runs else 0o644)
                size += 0 if os.path.isdir(path) else os.path.getsize(path)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    root.chmod(0o755)
    os.utime(root, (epoch, epoch))
    return size


def is_own(relative: Path) -> bool:
    """Tell whether a folder belongs to this package alone."""
    return any(relative.is_relative_to(folder) for folder in OWN)


def entries(root: Path) -> list[Path]:
    """Return everything that a package lists, relative to the root and sorted: all files and links, own folders.

    Raises:
        BuildError: A name holds a character that the lists of a package would have to quote.
    """
    found = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_dir() and not path.is_symlink() and not is_own(relative):
            continue
        if not _PLAIN.fullmatch(str(relative)):
            raise BuildError(f"{relative}: a name like this cannot stand in a package's list of files")
        found.append(relative)
    return found


def sums(files: Iterable[Path], top: Path | None = None) -> str:
    """Return the SHA-256 of files as `sha256sum -c` reads it: by name, or by ``./path`` below a folder."""
    lines = []
    for path in files:
        name = f"./{path.relative_to(top)}" if top else path.name
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n")
    return "".join(lines)


def write_manifest(prefix: Path) -> None:
    """List every file of a folder in a file inside it."""
    files = sorted(path for path in prefix.rglob("*") if path.is_file())
    (prefix / MANIFEST).write_text(sums(files, prefix), encoding="utf-8")
