"""``garrison logs``: the agent's own log, read from its two files, whether the agent runs or not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Final

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError
from garrison.fleet.cli.text import sanitise
from garrison.ipc.messages import LOG_LEVELS

LOG_NAMES: Final = ("garrison.0.log", "garrison.1.log")
TAIL_BYTES: Final = 4 * 1024 * 1024
"""Most bytes that are read back from the end of each file."""
POLL_SECONDS: Final = 0.3


def show(target: Target, *, last: int, follow: bool, level: str, sources: list[str]) -> int:
    """Print the last lines, then new ones as they come; return the exit code.

    Args:
        target: Whose log.
        last: How many lines of the past.
        follow: Whether to go on until Ctrl-C.
        level: The least important level that is shown.
        sources: Sources (``worker.process``, or a worker's name alone); none means all.

    Raises:
        CliError: There is no log, or it cannot be read.
    """
    settings = target.settings()
    folder = settings.agent.log_dir
    tail = LogTail([os.path.join(folder, name) for name in LOG_NAMES])
    try:
        lines = [line for line in tail.past() if _wanted(line, level, sources)]
        _write(lines[-last:] if last else [])
        while follow:
            time.sleep(POLL_SECONDS)
            _write([line for line in tail.news() if _wanted(line, level, sources)])
    except FileNotFoundError as error:
        remedy = (
            "`[log] files` is off: look at `journalctl -u garrison`"
            if not settings.log.files
            else ("the agent has not run with this configuration yet; under systemd see `journalctl -u garrison`")
        )
        raise CliError(f"there is no log in {folder}", remedy, exits.UNAVAILABLE) from error
    except PermissionError as error:
        raise CliError(
            f"{error.filename}: permission denied", "run as root: `sudo garrison logs`", exits.NO_PERMISSION
        ) from error
    return exits.OK


class LogTail:
    """Reads a log that is written alternately into two files.

    Args:
        paths: The two files.
    """

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._current = ""
        self._inode = 0
        self._offset = 0
        self._rest = b""

    def past(self) -> Iterator[str]:
        """Yield the lines that are there, oldest first, and note where they end.

        Raises:
            FileNotFoundError: None of the files is there.
        """
        found = self._by_age()
        if not found:
            raise FileNotFoundError
        for path in found:
            yield from self._read_from(path, None)

    def news(self) -> Iterator[str]:
        """Yield the lines that have come since the last call, also across a change of file."""
        for path in self._by_age():
            if path != self._current:
                continue
            yield from self._read_from(path, self._offset)
        newest = self._by_age()[-1:]
        if newest and newest[0] != self._current:
            yield from self._read_from(newest[0], 0)

    def _by_age(self) -> list[str]:
        ages = []
        for path in self._paths:
            try:
                ages.append((os.stat(path).st_mtime_ns, path))
            except FileNotFoundError:
                continue
        return [path for _, path in sorted(ages)]

    def _read_from(self, path: str, offset: int | None) -> Iterator[str]:
        """Yield lines of a file from an offset (None: from its last part), and stay at its end."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                size = status.st_size
                if offset is None:
                    offset = max(0, size - TAIL_BYTES)
                elif path == self._current and (offset > size or status.st_ino != self._inode):
                    offset = 0  # emptied, or another file by now
                if path != self._current or offset == 0:
                    self._rest = b""
                file.seek(offset)
                data = file.read(TAIL_BYTES)
        except FileNotFoundError:
            return
        self._current, self._inode, self._offset = path, status.st_ino, offset + len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")


def _wanted(line: str, level: str, sources: list[str]) -> bool:
    parts = line.split(" ", 3)
    if len(parts) < 3:
        return not sources and level == LOG_LEVELS[0]
    rank, source = parts[1], parts[2].removesuffix(":")
    if rank in LOG_LEVELS and LOG_LEVELS.index(rank) < LOG_LEVELS.index(level):
        return False
    names = (source, source.removeprefix("worker."))
    return not sources or any(name == wanted or name.startswith(f"{wanted}.") for name in names for wanted in sources)


def _write(lines: list[str]) -> None:
    for line in lines:
        sys.stdout.write(sanitise(line) + "\n")
    sys.stdout.flush()
