"""Setting a spool aside that cannot be read: under another name, for whoever wants to look into it."""

from __future__ import annotations

import contextlib
import os

SIDE_FILES = ("", "-wal", "-shm", "-journal")
"""What SQLite keeps beside a database."""
KEPT = 1
"""How many are kept. With them the disk holds twice the spool's bound at most; the newest tells most."""
SUFFIX = ".corrupt-"


def set_aside(path: str) -> str:
    """Rename a database and what belongs to it; older ones beyond `KEPT` are removed. Returns the new name.

    Raises:
        OSError: It could not be renamed. What was there before may be gone.
    """
    numbers = sorted(_numbers(path))
    while len(numbers) >= KEPT:
        remove(f"{path}{SUFFIX}{numbers.pop(0)}")
    name = f"{path}{SUFFIX}{numbers[-1] + 1 if numbers else 1}"
    remove(name)
    # The log first: a database without its log is an older one, a log beside a new database would be a trap.
    for side in reversed(SIDE_FILES):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + side, name + side)
    return name


def remove_side_files(path: str) -> None:
    """Remove what belongs to a database that is not there any more.

    Raises:
        OSError: It could not be removed.
    """
    for side in SIDE_FILES[1:]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + side)


def _numbers(path: str) -> list[int]:
    folder, name = os.path.split(path)
    start = name + SUFFIX
    found = {entry.removeprefix(start).split("-")[0] for entry in os.listdir(folder or ".") if entry.startswith(start)}
    return [int(number) for number in found if number.isascii() and number.isdecimal() and len(number) < 10]


def remove(name: str) -> None:
    """Remove a database and what belongs to it.

    Raises:
        OSError: It could not be removed.
    """
    for side in SIDE_FILES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name + side)
