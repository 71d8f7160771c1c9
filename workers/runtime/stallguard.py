"""The guard against a module that holds the interpreter's lock: a kernel timer that the runtime keeps winding up.

A C call that does not release the lock stops every thread of the process, the main one too: nobody is left to ask
the module to stop, or to leave without it. So the main thread winds up ``ITIMER_PROF`` again and again. It counts CPU
time of the process, so that one which is frozen, throttled, suspended or waits for its disk is never taken for a
stalled one. When it runs out, the kernel sends SIGPROF to the thread that is running. The handler is C code that needs
no lock (faulthandler): it writes down the stacks and lets the signal end the process. The next process reads which
module it was.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
from typing import Final

from garrison.workers.runtime.encoding import printable

FILE: Final = "stalled"
MAX_BYTES: Final = 64 * 1024
TURNS: Final = 2.5
"""The process counts as stalled when it has used the CPU time of so many of the main thread's turns, at its quota.
Less than the three beats of runnable time after which the master takes the whole worker for hung."""

MAX_FRAMES: Final = 4
"""Frames of the stack that are told."""

_MODULE: Final = "module 0x"
_CURRENT: Final = "Current thread 0x"
_FRAME: Final = "  File "


class StallGuard:
    """Ends the process when the main thread gets no turn while CPU time is used.

    Args:
        state_dir: Where the stacks are left for the next process; without it they go to standard error and nobody
            knows which module it was.
    """

    def __init__(self, state_dir: str) -> None:
        self._fd = _open(state_dir)
        self.stalled, self.stack = _read(self._fd) if self._fd is not None else ("", "")
        """Name of the module that the process before was ended for, and where it was; empty where there is none."""
        self._wound_at = float("-inf")

    def begin(self) -> None:
        """Have the stacks written when the time runs out; to be called before the modules are started."""
        faulthandler.register(signal.SIGPROF, file=2 if self._fd is None else self._fd, all_threads=True, chain=True)

    def enrol(self, name: str, ident: int) -> None:
        """Note which thread is a module's; called by the thread itself, before any code of the module."""
        if self._fd is not None:
            # On a full disk nobody will know which module it was; the process is ended all the same.
            with contextlib.suppress(OSError):
                os.write(self._fd, f"{_MODULE}{ident:x} {printable(name, 128)}\n".encode())

    def wind_up(self, now: float, turn_seconds: float, quota_percent: float) -> None:
        """Put the end off; to be called at least every `turn_seconds`.

        Args:
            now: Monotonic seconds.
            turn_seconds: Longest time between two turns of the main thread in good order.
            quota_percent: What the process may use at most, percent of one core.
        """
        if now - self._wound_at >= turn_seconds / 2:
            self._wound_at = now
            signal.setitimer(signal.ITIMER_PROF, TURNS * turn_seconds * max(1.0, quota_percent / 100))

    def end(self) -> None:
        """Stop the timer: from here on the master alone decides how long things may take."""
        if self._wound_at != float("-inf"):
            self._wound_at = float("-inf")
            signal.setitimer(signal.ITIMER_PROF, 0)


def _open(state_dir: str) -> int | None:
    if not state_dir:
        return None
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.open(os.path.join(state_dir, FILE), flags, 0o600)
    except OSError:
        return None


def _read(fd: int) -> tuple[str, str]:
    """Return module and place from what the process before has left, and take it away so that it counts once."""
    try:
        text = os.pread(fd, MAX_BYTES, 0).decode("utf-8", "replace")
        os.ftruncate(fd, 0)
    except OSError:
        return "", ""
    return parse(text)


def parse(text: str) -> tuple[str, str]:
    """Return the module and the innermost frames of the thread that was running, or two empty strings. Pure."""
    names: dict[str, str] = {}
    current = ""
    frames: list[str] = []
    for line in text.splitlines():
        if current:
            if not line.startswith(_FRAME) or len(frames) == MAX_FRAMES:
                break
            frames.append(line.removeprefix(_FRAME).strip())
        elif line.startswith(_MODULE):
            ident, _, name = line.removeprefix(_MODULE).partition(" ")
            names[ident] = name
        elif line.startswith(_CURRENT):
            current = line.removeprefix(_CURRENT).partition(" ")[0].lstrip("0")
    return names.get(current, ""), printable(" < ".join(frames), 512)
