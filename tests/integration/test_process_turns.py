"""When the process module does what it should: on a host where nothing happens, and while events are being lost."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from garrison.workers.process import module as module_file
from garrison.workers.process.connector import EXEC, Connector, ProcEvent
from garrison.workers.process.settings import Config
from garrison.workers.process.tracker import Tracker
from garrison.workers.runtime.wakeup import Wakeup
from tests.integration._process_support import DEADLINE, Processes, RecordingBox, Running, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="facts of other users' processes need root")


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def quiet_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connector that tells of nothing: this host is never quiet."""
    others: list[socket.socket] = []

    def connect(_: int) -> Connector:
        ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        others.append(other)
        return Connector(ours)

    monkeypatch.setattr(module_file, "open_connector", connect)
    try:
        yield
    finally:
        for other in others:
            other.close()


def stats(module: Running) -> Any:
    return module.call(lambda: module.module.task(module.box, "stats", {}))


@pytest.mark.usefixtures("quiet_host")
def test_a_rescan_needs_no_event_to_begin(processes: Processes) -> None:
    with running(Config(stats_seconds=0)) as module:
        child = processes.start("sleep", "60")
        assert module.call(lambda: module.module.task(module.box, "rescan", {}))["scan"] == "resync"
        assert module.event(event__action="exec", process__pid=child.pid)["event"]["provider"] == "resync"


@pytest.mark.usefixtures("quiet_host")
def test_new_settings_need_no_event_to_take_effect() -> None:
    with running(Config(stats_seconds=0)) as module:
        module.configure(Config(stats_seconds=0.5))
        module.event(event__kind="metric")


@pytest.mark.usefixtures("quiet_host")
def test_settings_that_end_polling_take_effect_before_the_next_poll(processes: Processes) -> None:
    with running(Config(source="poll", poll_seconds=3600, stats_seconds=0)) as module:
        module.configure(Config(source="poll", poll_seconds=0.2, stats_seconds=0))
        child = processes.start("sleep", "60")
        module.event(event__action="exec", process__pid=child.pid)
        module.configure(Config(source="poll", poll_seconds=3600, stats_seconds=0))
        module.configure(Config(source="connector", stats_seconds=0))
        second = processes.start("sleep", "61")
        module.call(lambda: module.module.task(module.box, "rescan", {}))
        assert module.event(event__action="exec", process__pid=second.pid)["event"]["provider"] == "resync"


class LosingConnector:
    """Says that events were lost, and that its queue is empty only after so many reads.

    Args:
        reads: Reads until it is empty, the last one included.
        during: Called in the last read but one: what happens now is lost.
    """

    def __init__(self, reads: int, during: Callable[[], None]) -> None:
        self._left = reads
        self._during = during
        self._bell = Wakeup()
        self._closed = False
        self.early = False
        self.overruns = 0
        self.malformed = 0

    def overflow(self) -> None:
        self._bell.set()

    def fileno(self) -> int:
        # As a socket that is closed.
        return -1 if self._closed else self._bell.fileno()

    def buffer_bytes(self) -> int:
        return 2**30

    def lost(self) -> int:
        # Drops go on for as long as the queue is not empty.
        return 100 - self._left

    def read(self) -> tuple[list[ProcEvent], bool]:
        if not self._left:
            return [], False
        self.overruns = 1
        # The descriptor need not be readable any more: the kernel shows an empty queue only to a further read.
        self._bell.clear()
        self._left -= 1
        if self._left == 1:
            self._during()
        return [], self._left > 0

    def close(self) -> None:
        if not self._closed:
            self._bell.close()
        self._closed = True


def test_a_resynchronisation_begins_when_the_kernel_has_stopped_dropping(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What starts between the first loss and the empty queue is dropped too; a look before that would miss it."""
    late: list[subprocess.Popen[bytes]] = []
    losing = LosingConnector(200, lambda: late.append(processes.start("sleep", "60")))
    monkeypatch.setattr(module_file, "open_connector", lambda _: losing)
    with running(Config(stats_seconds=0)) as module:
        losing.overflow()
        told = module.event(event__kind="state", event__action="overflow")
        assert told["garrison"] == {"lost": 100, "lost_total": 100, "overflows": 1}
        module.event(event__action="exec", process__pid=late[0].pid, event__provider="resync")


def test_the_source_can_be_changed_while_the_worker_is_degraded(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the module mostly sleeps without the connector, and finds it closed afterwards."""

    def connect(_: int) -> LosingConnector:
        connector = LosingConnector(0, lambda: None)
        connector.overflow()
        return connector

    monkeypatch.setattr(module_file, "open_connector", connect)
    with running(Config(stats_seconds=0), degraded=True) as module:
        for source in ("poll", "connector", "poll"):
            module.configure(Config(source=source, poll_seconds=0.2, stats_seconds=0))
        child = processes.start("sleep", "60")
        module.event(event__action="exec", process__pid=child.pid)


def test_losses_that_were_not_told_of_are_told_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    losing = LosingConnector(1, lambda: None)
    monkeypatch.setattr(module_file, "open_connector", lambda _: losing)
    monkeypatch.setattr(module_file, "RESYNC_SECONDS", 3600.0)
    with running(Config(stats_seconds=0)) as module:
        module.module._overflow_told = module.box.clock.monotonic()
        losing.overflow()
        module.until(lambda: module.module._overflow_due is not None, "overflow")
        assert not module.all(event__action="overflow")
    (told,) = module.all(event__action="overflow")
    assert told["garrison"]["lost"] == 100


def test_losses_are_still_counted_after_the_connector_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    connectors = [LosingConnector(1, lambda: None), LosingConnector(1, lambda: None)]
    left = iter(connectors)
    monkeypatch.setattr(module_file, "open_connector", lambda _: next(left))
    with running(Config(stats_seconds=0)) as module:
        connectors[0].overflow()
        first = module.event(event__kind="state", event__action="overflow")
        module.configure(Config(stats_seconds=0, receive_buffer_bytes=8192))
        assert first["garrison"]["lost"] == 100
        # The second one has dropped 99 before anybody has read from it.
        assert stats(module)["lost"] == 199


@pytest.mark.parametrize("ended", [False, True], ids=["alive", "ended since"])
def test_an_exec_that_a_resynchronisation_has_reported_is_not_reported_again(
    processes: Processes, *, ended: bool
) -> None:
    box = RecordingBox()
    try:
        tracker = Tracker(box, box.config)
        child = processes.start("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdin is not None
        assert child.stdout is not None
        os.write(child.stdin.fileno(), b"x")
        os.read(child.stdout.fileno(), 1)
        executed = time.monotonic_ns()
        tracker.executed(child.pid, "resync")
        tracker.scan_ended()
        if ended:
            child.kill()
            child.wait()
        # The queue is behind: it comes to the exec after the look at /proc has ended.
        tracker.handle(ProcEvent(EXEC, child.pid, 0, 0, executed))
        assert [event["event"]["provider"] for event in box.events] == ["resync"]
        assert tracker.counts["execs"] == 1
        # One that is newer than the look is another exec.
        tracker.handle(ProcEvent(EXEC, child.pid, 0, 0, time.monotonic_ns()))
        assert [event["event"]["provider"] for event in box.events] == ["resync", "connector"]
    finally:
        box.close()


def test_an_exec_after_the_report_of_a_resynchronisation_is_reported(processes: Processes) -> None:
    box = RecordingBox()
    try:
        tracker = Tracker(box, box.config)
        child = processes.start("sleep", "60")
        tracker.executed(child.pid, "resync")
        tracker.handle(ProcEvent(EXEC, child.pid, 0, 0, time.monotonic_ns()))
        tracker.scan_ended()
        assert [event["event"]["provider"] for event in box.events] == ["resync", "connector"]
    finally:
        box.close()


class CountingBox(RecordingBox):
    """Counts the waits."""

    waits = 0

    def wait(self, *fds: int, timeout: float | None = None) -> list[int]:
        self.waits += 1
        return super().wait(*fds, timeout=timeout)


@pytest.mark.usefixtures("quiet_host")
def test_a_resynchronisation_that_is_due_does_not_keep_a_polling_worker_busy() -> None:
    box = CountingBox(Config(stats_seconds=0))
    module = Running(box)
    polling = Config(source="poll", poll_seconds=3600, stats_seconds=0)

    def poll() -> None:
        # As after an overflow; the look at /proc that follows it is still to come.
        module.module._resync_due = box.clock.monotonic() + 0.2
        module.module.reconfigure(box, polling)
        box.config = polling

    module.start()
    try:
        module.call(poll)
        before = box.waits
        ticks = threading.Semaphore(0)

        def count() -> None:
            ticks.release()

        # Two ticks pass: in a busy loop there would be thousands of waits between them.
        module.call(lambda: box.every(1.0, count))
        for _ in range(2):
            assert ticks.acquire(timeout=DEADLINE)
        assert box.waits - before < 200
        assert stats(module)["source"] == "poll"
    finally:
        module.stop()


def test_alerts_held_back_are_told_of_at_the_end(processes: Processes) -> None:
    target = f"/var/tmp/garrison-test-{os.getpid()}-held"
    with open("/bin/sleep", "rb") as source, open(target, "wb") as copy:
        copy.write(source.read())
    os.chmod(target, 0o755)
    try:
        with running() as module:
            for _ in range(3):
                child = processes.start(target, "60")
                module.event(event__action="exec", process__pid=child.pid)
            assert not [found for found in module.all(event__action="alerts-suppressed") if target in str(found)]
        findings = [f for told in module.all(event__action="alerts-suppressed") for f in told["garrison"]["findings"]]
        assert [f["count"] for f in findings if f["process"]["executable"] == target] == [2]
    finally:
        os.unlink(target)
