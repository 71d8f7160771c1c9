"""A sandbox for the process module that polls real descriptors, and processes that are ended with the test."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from garrison.ipc.messages import Priority
from garrison.ipc.pacing import TokenBucket
from garrison.workers.process import MODULE
from garrison.workers.process.events import iso
from garrison.workers.process.settings import Config

DEADLINE = 30.0


class RealClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()

    def timestamp(self) -> str:
        return iso(time.time())


class ListLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def _add(self, level: str, message: str, args: tuple[object, ...]) -> None:
        self.lines.append((level, message % args if args else message))

    def debug(self, message: str, *args: object) -> None:
        self._add("debug", message, args)

    def info(self, message: str, *args: object) -> None:
        self._add("info", message, args)

    def notice(self, message: str, *args: object) -> None:
        self._add("notice", message, args)

    def warning(self, message: str, *args: object) -> None:
        self._add("warning", message, args)

    def error(self, message: str, *args: object) -> None:
        self._add("error", message, args)

    def critical(self, message: str, *args: object) -> None:
        self._add("critical", message, args)


class RecordingBox:
    """Records what is emitted, as the JSON that would leave; waits on real descriptors; runs tickers."""

    name = "process"
    worker = "process"
    state_dir = "/nonexistent"

    def __init__(self, config: Config | None = None) -> None:
        self.config: Any = config or Config()
        self.clock = RealClock()
        self.log = ListLog()
        self.degraded = False
        self.cpu_percent = 100.0
        self.events: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickers: list[list[Any]] = []
        self._stopping = False
        self._wake, self._waker = os.pipe()

    @property
    def stopping(self) -> bool:
        return self._stopping

    def emit(self, event: dict[str, Any], *, priority: Priority | None = None) -> bool:
        document = msgspec.json.decode(msgspec.json.encode(event))
        assert event["event"]["kind"] in ("event", "alert", "state", "metric")
        assert event["event"]["action"]
        with self.changed:
            self.events.append(document)
            self.changed.notify_all()
        return True

    def every(self, seconds: float, call: Callable[[], None], *, immediately: bool = False) -> None:
        self._tickers.append([time.monotonic() + (0.0 if immediately else seconds), seconds, call])

    def rate(self, per_second: float, burst: float) -> TokenBucket:
        return TokenBucket(per_second, burst)

    def pace(self, work: str = "") -> bool:
        return not self._stopping

    def wait(self, *fds: int, timeout: float | None = None) -> list[int]:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            while not self.calls.empty():
                self.calls.get()()
            if self._stopping:
                return []
            now = time.monotonic()
            for ticker in self._tickers:
                if ticker[0] <= now:
                    ticker[0] = now + ticker[1]
                    ticker[2]()
            due = [ticker[0] for ticker in self._tickers]
            if end is not None:
                due.append(end)
            left = max(min(due) - time.monotonic(), 0.0) if due else None
            poller = select.poll()
            for fd in (*fds, self._wake):
                poller.register(fd, select.POLLIN)
            ready = [fd for fd, _ in poller.poll(None if left is None else left * 1000)]
            if self._wake in ready:
                os.read(self._wake, 4096)
                ready.remove(self._wake)
                if not self.calls.empty():
                    # A call comes before the descriptors, so that what it holds up is not read behind its back.
                    continue
            if ready or (end is not None and time.monotonic() >= end):
                return ready

    def wake(self) -> None:
        os.write(self._waker, b"w")

    def stop(self) -> None:
        self._stopping = True
        self.wake()

    def close(self) -> None:
        os.close(self._wake)
        os.close(self._waker)


class Running:
    """The module in a thread of its own, as the runtime has it."""

    def __init__(self, box: RecordingBox) -> None:
        self.box = box
        self.module = MODULE()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.module.init(self.box)
            self.module.run(self.box)
        except BaseException as error:
            self.failure = error
            with self.box.changed:
                self.box.changed.notify_all()
        finally:
            self.module.shutdown(self.box)

    def start(self) -> None:
        self._thread.start()
        self.until(lambda: any(line.startswith("watching") for _, line in self.box.log.lines), "the first look")

    def stop(self) -> None:
        self.box.stop()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self.box.close()
        if self.failure is not None:
            raise self.failure

    def call(self, function: Callable[[], Any]) -> Any:
        """Run something in the module's thread, from `wait`, as the runtime runs settings and tasks."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(function())
            except Exception as error:
                result.append(error)
            done.set()

        self.box.calls.put(run)
        self.box.wake()
        assert done.wait(DEADLINE)
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the module's thread inside `wait`: once this is entered, it reads nothing until it is left."""
        inside, go_on = threading.Event(), threading.Event()

        def pause() -> None:
            inside.set()
            go_on.wait()

        self.box.calls.put(pause)
        self.box.wake()
        try:
            assert inside.wait(DEADLINE)
            yield
        finally:
            go_on.set()

    def configure(self, config: Config) -> None:
        def change() -> None:
            self.module.reconfigure(self.box, config)
            self.box.config = config

        self.call(change)

    def until(self, holds: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
        end = time.monotonic() + deadline
        with self.box.changed:
            while True:
                if self.failure is not None:
                    raise AssertionError(f"the module failed while waiting for {what}") from self.failure
                value = holds()
                if value:
                    return value
                left = end - time.monotonic()
                assert left > 0, f"no {what} within {deadline} s; {self.module.task(self.box, 'stats', {})}"
                self.box.changed.wait(min(left, 0.2))

    def event(self, deadline: float = DEADLINE, **wanted: Any) -> dict[str, Any]:
        """Wait for a document; keys are paths with ``__`` for dots: ``process__pid=1``."""
        found: dict[str, Any] = self.until(
            lambda: next((e for e in self.box.events if matches(e, wanted)), None), f"event {wanted}", deadline
        )
        return found

    def alert(self, rule: str, **wanted: Any) -> dict[str, Any]:
        return self.event(event__kind="alert", rule__id=rule, **wanted)

    def all(self, **wanted: Any) -> list[dict[str, Any]]:
        with self.box.changed:
            return [event for event in self.box.events if matches(event, wanted)]

    def settled(self) -> None:
        """Return when a marker process started now has been reported, so that all before it has been too."""
        with subprocess.Popen(["sleep", "60"]) as marker:
            try:
                self.event(event__action="exec", process__pid=marker.pid)
            finally:
                marker.kill()


def matches(event: dict[str, Any], wanted: dict[str, Any]) -> bool:
    for path, value in wanted.items():
        at: Any = event
        for key in path.split("__"):
            at = at.get(key) if isinstance(at, dict) else None
        if at != value:
            return False
    return True


@contextlib.contextmanager
def running(config: Config | None = None, degraded: bool = False) -> Iterator[Running]:
    box = RecordingBox(config)
    box.degraded = degraded
    module = Running(box)
    try:
        module.start()
        yield module
    finally:
        module.stop()


class Processes:
    """Starts processes in sessions of their own; ends all of them, children included."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.DEVNULL)
        options.setdefault("stderr", subprocess.DEVNULL)
        process = subprocess.Popen(args, start_new_session=True, **options)
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()


class Attacker:
    """Listens on loopback, as the one who waits for a reverse shell."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        self.listener.listen()
        self.listener.settimeout(DEADLINE)
        self.port: int = self.listener.getsockname()[1]
        self._sessions: list[socket.socket] = []

    def accept(self) -> socket.socket:
        session, _ = self.listener.accept()
        session.settimeout(DEADLINE)
        self._sessions.append(session)
        return session

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self.listener.close()
