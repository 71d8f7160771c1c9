"""A real worker process on real pipes, as the nursery would start it, with the test as its master."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from garrison.ipc.channel import ChannelClosedError, FrameReceiver
from garrison.ipc.frames import MAX_DOWN_BYTES, MAX_UP_BYTES, encode
from garrison.ipc.messages import Beat, Config, Down, Events, Log, Result, Task, Up, decode_up, kind_of
from garrison.workers.runtime.assignment import Assignment

DEADLINE_SECONDS = 40.0

_CHILD = """
import os, sys
import msgspec
from garrison.workers.runtime.assignment import Assignment
from garrison.workers.runtime.process import run
os._exit(run(msgspec.json.decode(sys.argv[1], type=Assignment)))
"""

T = TypeVar("T", bound=Up)


class Ledger:
    """Holds the equation: every number of a priority is in data or in a drop range, once and in order."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.delivered: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.documents: list[dict[str, Any]] = []

    def take(self, batch: Events) -> None:
        expected = self.next.get(batch.priority, 1)
        for first, last, reason in batch.dropped:
            assert first == expected, f"{batch.priority}: range {first}-{last} after {expected - 1}"
            assert last >= first
            self.dropped[reason] = self.dropped.get(reason, 0) + last - first + 1
            expected = last + 1
        assert batch.first == expected, f"{batch.priority}: batch starts at {batch.first}, expected {expected}"
        assert batch.data.count(b"\n") == batch.count
        for line in batch.data.splitlines():
            document = msgspec.json.decode(line)
            assert document["event"]["sequence"] == expected
            expected += 1
            self.documents.append(document)
        assert batch.count + len(batch.dropped) > 0
        self.delivered[batch.priority] = self.delivered.get(batch.priority, 0) + batch.count
        self.next[batch.priority] = expected

    def numbered(self) -> dict[str, int]:
        return {priority: number - 1 for priority, number in self.next.items()}

    def actions(self) -> list[str]:
        return [document["event"]["action"] for document in self.documents]


class WorkerProcess:
    """One worker; the test is its master."""

    def __init__(self, directory: Path, modules: dict[str, str], **assignment: Any) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.state_dir.mkdir()
        source = directory / "modules.py"
        shutil.copy(Path(__file__).with_name("_runtime_modules.py"), source)
        source.chmod(0o600)
        specs = tuple((name, f"{source}:{spec}" if spec.isidentifier() else spec) for name, spec in modules.items())
        config_read, self.config_fd = os.pipe()
        self.events_fd, events_write = os.pipe()
        self.assignment = Assignment(
            **{
                "worker": "w",
                "host": "testhost",
                "state_dir": str(self.state_dir),
                "beat_seconds": 0.2,
                "modules": specs,
                "config_fd": config_read,
                "events_fd": events_write,
                **assignment,
            }
        )
        self.stderr_path = directory / "stderr"
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, msgspec.json.encode(self.assignment).decode()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(config_read, events_write),
                start_new_session=True,
            )
        os.close(config_read)
        os.close(events_write)
        os.set_blocking(self.events_fd, False)
        self._receiver = FrameReceiver(self.events_fd, MAX_UP_BYTES)
        self.ledger = Ledger()
        self.messages: list[Up] = []
        self.ended = False
        self._revision = 0
        self._read_to = 0

    def send(self, message: Down) -> None:
        os.write(self.config_fd, encode(kind_of(message), message, limit=MAX_DOWN_BYTES))

    def configure(self, settings: dict[str, Any] | None = None, **more: Any) -> int:
        """Send a configuration; return its revision."""
        self._revision += 1
        fields = {"hash": f"h{self._revision}", "beat_seconds": self.assignment.beat_seconds, **more}
        self.send(Config(revision=self._revision, settings=settings or {}, **fields))
        return self._revision

    def ask(self, task: str, module: str = "", **arguments: Any) -> Result:
        """Run a task and wait for its result."""
        identity = f"t{len(self.messages)}-{task}"
        self.send(Task(id=identity, task=task, module=module, arguments=arguments))
        return self.wait_for(Result, lambda result: result.id == identity)

    def read(self, seconds: float) -> None:
        """Take in what comes within so many seconds, or at once with what is there."""
        poll = select.poll()
        poll.register(self.events_fd, select.POLLIN)
        if self.ended or not poll.poll(seconds * 1000):
            return
        try:
            for kind, payload in self._receiver.receive():
                message = decode_up(kind, payload)
                self.messages.append(message)
                if isinstance(message, Events):
                    self.ledger.take(message)
        except ChannelClosedError:
            self.ended = True

    def until(self, done: Callable[[], object], what: str = "that") -> None:
        """Read until something is the case."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"{what} did not come within {DEADLINE_SECONDS} s; stderr: {self.stderr()}"
            assert not self.ended, f"the worker ended before {what}; stderr: {self.stderr()}"
            self.read(left)

    def wait_for(self, kind: type[T], accept: Callable[[T], object] = lambda _message: True) -> T:
        """Return the first message of a kind that is accepted, those read before included."""
        found: list[T] = []
        seen = 0

        def look() -> bool:
            nonlocal seen
            for message in self.messages[seen:]:
                seen += 1
                if isinstance(message, kind) and accept(message):
                    found.append(message)
                    return True
            return False

        self.until(look, kind.__name__)
        return found[0]

    def wait_for_next(self, kind: type[T], accept: Callable[[T], object], what: str) -> T:
        """Return the first message of a kind that comes from now on and is accepted."""
        seen = len(self.of(kind))
        self.until(lambda: any(accept(message) for message in self.of(kind)[seen:]), what)
        return next(message for message in self.of(kind)[seen:] if accept(message))

    def of(self, kind: type[T]) -> list[T]:
        return [message for message in self.messages if isinstance(message, kind)]

    def logs(self) -> list[Log]:
        return self.of(Log)

    def last_beat(self) -> Beat:
        return self.of(Beat)[-1]

    def next_beat(self) -> Beat:
        """Return a beat made after now."""
        seen = len(self.of(Beat))
        self.until(lambda: len(self.of(Beat)) > seen + 1, "a beat")
        return self.last_beat()

    def finish(self) -> int:
        """Read to the end of the pipe and return the exit status."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self.ended:
            assert time.monotonic() < deadline, "the worker did not end"
            self.read(deadline - time.monotonic())
        return self.process.wait(DEADLINE_SECONDS)

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def close_config(self) -> None:
        if self.config_fd >= 0:
            os.close(self.config_fd)
            self.config_fd = -1

    def close_events(self) -> None:
        if self.events_fd >= 0:
            os.close(self.events_fd)
            self.events_fd = -1

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.close_config()
        self.close_events()


@contextlib.contextmanager
def worker(directory: Path, modules: dict[str, str], **assignment: Any) -> Iterator[WorkerProcess]:
    """Start a worker; whatever happens, nothing of it is left."""
    directory.mkdir(parents=True, exist_ok=True)
    process = WorkerProcess(directory, modules, **assignment)
    try:
        yield process
    finally:
        process.close()
