"""A small file system of a test's own, to see what a full or read-only disk does."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path


class MountRefusedError(Exception):
    """This machine does not let us mount: the test that needs it is skipped."""


@contextlib.contextmanager
def tmpfs(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a tmpfs at a folder and unmount it whatever happens."""
    folder.mkdir()
    options = f"size={size_bytes},mode=0700,nosuid,nodev,noexec"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "garrison-test", str(folder)], capture_output=True)
    if done.returncode != 0:
        raise MountRefusedError(done.stderr.decode(errors="replace"))
    try:
        yield folder
    finally:
        if subprocess.run(["umount", str(folder)], capture_output=True).returncode != 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def remount_read_only(folder: Path) -> None:
    """Make the file system at a folder read-only."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
