"""Workers that do harm in one way each while a file says so: modules of the runtime, or plain programs.

    python hogs.py CpuHog SWITCH      without the runtime, for a supervisor that knows no pipes

A hog does harm while its switch file exists and behaves again when it is gone. When it begins it writes the monotonic
time into ``SWITCH.began``, where nothing stands yet. Each has a fuse: a bound of its own on what it takes and for how
long, because it also runs where nobody else bounds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from garrison.workers.runtime.module import Module

MIB = 1024 * 1024
LOOK_SECONDS = 0.05
FUSE_SECONDS = 300.0
FUSE_MIB = 400
FUSE_PROCESSES = 200
FUSE_THREADS = 300
FUSE_FDS = 2000


class HogConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What makes it harmful, and how harmful it is then."""

    switch: str = ""
    mib_per_second: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 10.0
    after_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 60.0
    burst_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.5
    rest_seconds: Annotated[float, msgspec.Meta(ge=0, le=60)] = 1.5


class Hog(Module):
    """Waits for its switch; then `harm` is called until the switch is gone."""

    Config = HogConfig

    def init(self, box: Any) -> None:
        self.on = switched(box.config.switch)
        self.look(box)

    def run(self, box: Any) -> None:
        while not box.stopping:
            if self.look(box):
                self.harm(box)
            else:
                self.behave()
            box.wait(timeout=LOOK_SECONDS)

    def look(self, box: Any) -> bool:
        """Tell whether to do harm; the first time, note when."""
        if not self.on():
            return False
        with contextlib.suppress(FileExistsError), open(f"{box.config.switch}.began", "x", encoding="ascii") as file:
            file.write(repr(time.monotonic()))
        return True

    def harm(self, box: Any) -> None:
        raise NotImplementedError

    def behave(self) -> None:
        """Give back what can be given back."""


def switched(path: str) -> Callable[[], bool]:
    """Return what tells whether the switch is on; it never is after the fuse has burned."""
    end = time.monotonic() + FUSE_SECONDS
    return lambda: time.monotonic() < end and os.path.exists(path)


def spin(seconds: float) -> None:
    """Burn CPU time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(2000):
            pass


class CpuHog(Hog):
    """Burns whatever it gets."""

    def harm(self, box: Any) -> None:
        while self.on() and not box.stopping:
            spin(0.01)


class IgnoresTerm(Hog):
    """Burns CPU, and neither SIGTERM nor the request to stop impresses it."""

    def init(self, box: Any) -> None:
        # Through the C library, because Python lets only the main thread do this.
        ctypes.CDLL(None).signal(int(signal.SIGTERM), int(signal.SIG_IGN))
        super().init(box)

    def harm(self, box: Any) -> None:
        while self.on():
            spin(0.01)


class SlowLeak(Hog):
    """Keeps a little more each time."""

    def init(self, box: Any) -> None:
        self.hoard: list[bytearray] = []
        super().init(box)

    def harm(self, box: Any) -> None:
        if sum(map(len, self.hoard)) < FUSE_MIB * MIB:
            self.hoard.append(bytearray(b"x") * int(box.config.mib_per_second * LOOK_SECONDS * MIB))

    def behave(self) -> None:
        self.hoard.clear()


class AllocationBurst(SlowLeak):
    """Takes a lot at once."""

    def harm(self, box: Any) -> None:
        if not self.hoard:
            self.hoard.append(bytearray(b"x") * (FUSE_MIB * MIB))


class ForkBomb(Hog):
    """Every process forks, and so do its children; the fuse is a pipe of tokens that all of them share."""

    def harm(self, box: Any) -> None:
        tokens, more = os.pipe()
        os.set_blocking(tokens, False)
        os.write(more, bytes(FUSE_PROCESSES))
        multiply(self.on, tokens, more)
        os.close(tokens)
        os.close(more)

    def behave(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def multiply(on: Callable[[], bool], tokens: int, more: int) -> None:
    """Fork again and again while it goes; a refusal is no reason to stop."""
    while on():
        with contextlib.suppress(BlockingIOError):
            os.read(tokens, 1)
            try:
                if os.fork() == 0:
                    multiply(on, tokens, more)
                    os._exit(0)
            except BlockingIOError:
                os.write(more, b"\0")
        time.sleep(0.01)


class FdLeak(Hog):
    """Opens and never closes, twenty at a time."""

    def init(self, box: Any) -> None:
        self.fds: list[int] = []
        super().init(box)

    def harm(self, box: Any) -> None:
        with contextlib.suppress(OSError):
            for _ in range(20 if len(self.fds) < FUSE_FDS else 0):
                self.fds.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))

    def behave(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class ThreadLeak(Hog):
    """Starts threads that wait for what never comes, five at a time."""

    def init(self, box: Any) -> None:
        self.over = threading.Event()
        self.count = 0
        super().init(box)

    def harm(self, box: Any) -> None:
        with contextlib.suppress(RuntimeError):
            for _ in range(5 if self.count < FUSE_THREADS else 0):
                threading.Thread(target=self.over.wait, args=(FUSE_SECONDS,), daemon=True).start()
                self.count += 1

    def behave(self) -> None:
        if self.count:
            self.over.set()
            self.over, self.count = threading.Event(), 0


class EventFlood(Hog):
    """Sends as many events as it can build."""

    def harm(self, box: Any) -> None:
        while self.on() and not box.stopping:
            for _ in range(200):
                box.emit({"event": {"kind": "event", "action": "flood"}, "message": "x" * 100})
            box.wait(timeout=0)


class LogFlood(Hog):
    """Logs as many lines as it can."""

    def harm(self, box: Any) -> None:
        while self.on() and not box.stopping:
            for number in range(200):
                box.log.error("line %d of many: %s", number, "x" * 100)
            box.wait(timeout=0)


class Hang(Hog):
    """Sleeps for ever in a C call that keeps the interpreter's lock: no thread of the process runs any more."""

    def harm(self, box: Any) -> None:
        box.wait(timeout=0.5)  # a hang of what runs; one that is never ready has a minute, whatever the scale
        ctypes.PyDLL(None).sleep(int(FUSE_SECONDS))


class ExitsAtOnce(Hog):
    """Ends its process wherever it is, without a word."""

    def look(self, box: Any) -> bool:
        if super().look(box):
            os._exit(3)
        return False


class ExitsLater(Hog):
    """Ends its process after a while."""

    def harm(self, box: Any) -> None:
        box.wait(timeout=box.config.after_seconds)
        if self.on():
            os._exit(3)


class Garbage(Hog):
    """Writes what is no frame to where frames belong; without the runtime to its standard output."""

    def harm(self, box: Any) -> None:
        fd = 1 if isinstance(box, PlainBox) else 4
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(fd, os.urandom(4096))


class Bursty(Hog):
    """Is busy for a moment, rests, is busy again: what legitimate work looks like."""

    def harm(self, box: Any) -> None:
        spin(box.config.burst_seconds)
        box.wait(timeout=box.config.rest_seconds)


class Paced(Hog):
    """Has work without end, and does it at the pace that the runtime gives: what a scan does."""

    def harm(self, box: Any) -> None:
        while self.on() and box.pace("scan"):
            spin(0.001)


class Escapees(Hog):
    """Leaves three grandchildren in sessions of their own that ignore SIGTERM and burn CPU."""

    def init(self, box: Any) -> None:
        self.sent = False
        super().init(box)

    def harm(self, box: Any) -> None:
        if self.sent:
            return
        self.sent = True
        for _ in range(3):
            child = os.fork()
            if child == 0:
                self.escape()
            os.waitpid(child, 0)

    def escape(self) -> None:
        os.setsid()
        if os.fork() == 0:
            ctypes.CDLL(None).signal(int(signal.SIGTERM), int(signal.SIG_IGN))
            while self.on():
                spin(0.01)
        os._exit(0)

    def behave(self) -> None:
        self.sent = False


class PlainBox:
    """As much of the sandbox as a hog needs where there is no runtime."""

    def __init__(self, switch: str) -> None:
        self.config = HogConfig(switch)
        self.stopping = False
        self.log = self

    def wait(self, timeout: float = 0.0) -> None:
        time.sleep(timeout)

    def emit(self, event: dict[str, Any]) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")

    def error(self, message: str, *args: object) -> None:
        sys.stderr.write(message % args + "\n")


if __name__ == "__main__":
    plain = PlainBox(sys.argv[2])
    hog = globals()[sys.argv[1]]()
    hog.init(plain)
    hog.run(plain)
