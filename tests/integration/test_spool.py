"""The pipeline with its spool, on real disks: outages, restarts, and what a disk can do wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.events.stamp import Stamp
from garrison.supervisor.spool.database import SpoolFile
from garrison.supervisor.spool.errors import SpoolError
from tests.integration._cgroup_support import eventually
from tests.integration._spool_support import MIB, Host, Moody, Worker
from tests.integration._tmpfs_support import MountRefusedError, remount_read_only, tmpfs

Make = Callable[..., Host]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Make]:
    """Make hosts whose pipelines end however the test ends."""
    hosts: list[Host] = []

    def make(path: Path | None = None, **keywords: object) -> Host:
        hosts.append(Host(path or tmp_path / f"spool{len(hosts)}.sqlite", **keywords))  # type: ignore[arg-type]
        return hosts[-1]

    yield make
    for host in hosts:
        for pipeline in host.pipelines:
            pipeline._sink.free.set()  # type: ignore[attr-defined]
            pipeline.close(0.0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    try:
        with tmpfs(tmp_path / "disk", 2 * MIB) as folder:
            yield folder
    except MountRefusedError as error:
        pytest.skip(f"no file system can be mounted here: {error}")


def spooled(pipeline: Pipeline) -> int:
    spool = pipeline.figures().spool
    assert spool is not None
    return spool.events


# Outages


def test_what_an_outage_keeps_back_arrives_in_order_when_it_is_over(make_host: Make) -> None:
    host, sink = make_host(), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(60):
        pipeline.put(worker.batch(count=50, width=300))
        pipeline.put(worker.batch("alert"))
        pipeline.put(worker.batch("metric"))
    eventually(lambda: spooled(pipeline) == 60 * 52, "all of it is on the disk")
    assert pipeline.figures().queue_bytes == 0
    assert sink.taken == []
    sink.away = False
    eventually(pipeline.idle, "all is delivered")
    assert sink.numbers("event") == list(range(1, 3001))
    assert sink.numbers("alert") == list(range(1, 61))
    assert sink.numbers("metric") == list(range(1, 61))
    assert host.balanced()
    eventually(lambda: spooled(pipeline) == 0, "the spool is empty")
    assert pipeline.close(10) == 0
    assert host.troubles == []


def test_alerts_that_come_during_an_outage_overtake_the_backlog_of_events(make_host: Make) -> None:
    host, sink = make_host(), Moody(away=True)
    host.rate = 64 * 1024
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(200):
        pipeline.put(worker.batch(count=100, width=300))
    eventually(lambda: spooled(pipeline) == 20_000, "the backlog is on the disk")
    sink.away = False
    eventually(lambda: sink.taken, "the first events are out")
    pipeline.put(worker.batch("alert", 3))
    pipeline.put(worker.batch("state", 3))
    eventually(lambda: sink.numbers("alert") and sink.numbers("state"), "alert and state are out")
    assert len(sink.numbers()) < 20_000
    assert spooled(pipeline) > 0


def test_a_sink_that_hangs_does_not_keep_events_in_memory(make_host: Make) -> None:
    host, sink = make_host(), Moody()
    sink.free.clear()
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    pipeline.put(worker.batch())
    eventually(lambda: sink.writes, "the sink has begun to write")
    for _ in range(10):
        pipeline.put(worker.batch(count=10))
    eventually(lambda: spooled(pipeline) == 100, "what came after it is on the disk")
    sink.free.set()
    eventually(pipeline.idle, "all is delivered")
    assert sink.numbers() == list(range(1, 102))
    assert host.balanced()


def test_a_sink_that_works_never_touches_the_disk(make_host: Make) -> None:
    host, sink = make_host(), Moody()
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(100):
        pipeline.put(worker.batch(count=10))
    eventually(lambda: len(sink.numbers()) == 1000, "all is delivered")
    assert pipeline.close(10) == 0
    assert not host.path.exists()


def test_sqlite_is_loaded_only_where_something_is_spooled() -> None:
    code = "import sys; import garrison.supervisor.agent; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Restarts


@pytest.mark.parametrize("always", [False, True])
def test_what_the_sink_did_not_take_before_the_end_is_sent_after_the_next_start(make_host: Make, always: bool) -> None:
    host, away, back = make_host(always=always), Moody(away=True), Moody()
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(away)
    for _ in range(20):
        pipeline.put(worker.batch(count=10))
        pipeline.put(worker.batch("state"))
    assert pipeline.close(0.2) == 0
    assert host.ledger("w").in_flight == 220
    again = host.pipeline(back, start=False)
    assert {key: tuple(held) for key, held in host.held.items()} == {
        ("w", 1, "event"): (200, 1, 200),
        ("w", 1, "state"): (20, 1, 20),
    }
    after = Worker(host.ledger("w"), epoch=2)
    again.put(after.batch(count=5))
    again.start()
    eventually(again.idle, "all is delivered")
    assert back.numbers() == [*range(1, 201), *range(1, 6)]
    assert [batch.epoch for batch in back.taken if batch.priority == "event"][-1] == 2
    assert host.balanced()
    assert host.ledger("w").dropped == {}


def test_without_a_spool_that_takes_it_the_rest_is_counted_at_the_end(make_host: Make, tmp_path: Path) -> None:
    host, sink = make_host(tmp_path / "missing" / "spool.sqlite"), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    pipeline.put(worker.batch(count=7))
    eventually(lambda: host.troubles, "the spool's trouble is told")
    assert "missing" in host.troubles[0]
    assert pipeline.close(0.1) == 7
    assert host.ledger("w").dropped == {"shutdown": 7}


# The bound


def test_database_and_log_stay_below_the_bound_and_the_oldest_events_make_room(make_host: Make) -> None:
    host, sink = make_host(max_bytes=1 * MIB), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    alerts, largest = 0, 0
    for turn in range(400):
        batch = worker.batch(count=20)
        # Nothing that could be compressed: the disk is what is tested here.
        batch.data = b"".join(b'{"x":"' + os.urandom(700).hex().encode() + b'"}\n' for _ in range(20))
        pipeline.put(batch)
        if turn % 4 == 0:
            pipeline.put(worker.batch("alert"))
            alerts += 1
        if turn % 20 == 0:
            eventually(lambda: pipeline.figures().queue_bytes == 0 or sink.writes < 1, "the spool has taken it")
        largest = max(largest, host.size())
    eventually(lambda: pipeline.figures().queue_bytes == 0, "the spool has taken all")
    assert largest <= 1 * MIB
    dropped = host.ledger("w").dropped
    assert set(dropped) == {"spool_full"}
    sink.away = False
    eventually(pipeline.idle, "all is delivered")
    assert sink.numbers("alert") == list(range(1, alerts + 1))
    events = sink.numbers("event")
    assert events == sorted(set(events))
    assert len(events) + dropped["spool_full"] == 8000
    assert events[-1] == 8000
    assert host.balanced()


def test_a_smaller_bound_holds_from_the_next_start_on(make_host: Make, tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    large, sink = make_host(path, max_bytes=8 * MIB), Moody(away=True)
    worker = Worker(large.ledger("w"))
    pipeline = large.pipeline(sink)
    for _ in range(150):
        batch = worker.batch(count=10)
        batch.data = b"".join(b'{"x":"' + os.urandom(1500).hex().encode() + b'"}\n' for _ in range(10))
        pipeline.put(batch)
    assert pipeline.close(0.1) == 0
    assert large.size() > 2 * MIB
    small, back = make_host(path, max_bytes=1 * MIB), Moody()
    small.ledgers = large.ledgers
    again = small.pipeline(back)
    eventually(lambda: back.taken and again.idle(), "what was kept is delivered")
    assert small.size() <= 1 * MIB
    kept = back.numbers()
    assert kept == list(range(kept[0], 1501))
    assert small.ledger("w").dropped == {"spool_full": kept[0] - 1}
    assert small.balanced()


def test_an_empty_spool_gives_its_space_back(make_host: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("garrison.supervisor.spool.keeper.IDLE_SECONDS", 0.1)
    # On a busy machine the sink has failed often enough by then to be left alone for 15 s.
    monkeypatch.setattr("garrison.supervisor.events.pipeline.RETRY_CAP_SECONDS", 0.5)
    host, sink = make_host(), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(60):
        batch = worker.batch()
        batch.data = b'{"x":"' + os.urandom(20_000).hex().encode() + b'"}\n'
        pipeline.put(batch)
    eventually(lambda: spooled(pipeline) == 60 and host.size() > MIB, "it is on the disk")
    sink.away = False
    eventually(lambda: host.size() < 100_000, "the disk is free again")
    assert len(sink.numbers()) == 60


def test_space_that_could_not_be_given_back_is_given_back_later(
    make_host: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("garrison.supervisor.spool.keeper.IDLE_SECONDS", 0.1)
    monkeypatch.setattr("garrison.supervisor.events.pipeline.RETRY_CAP_SECONDS", 0.5)
    shrink, failures = SpoolFile.shrink, list[str]()

    def fails_once(file: SpoolFile) -> None:
        if not failures:
            failures.append("a disk that does not answer")
            raise SpoolError("unusable", failures[0])
        shrink(file)

    monkeypatch.setattr(SpoolFile, "shrink", fails_once)
    host, sink = make_host(), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(30):
        batch = worker.batch()
        batch.data = b'{"x":"' + os.urandom(20_000).hex().encode() + b'"}\n'
        pipeline.put(batch)
    eventually(lambda: spooled(pipeline) == 30 and host.size() > MIB // 2, "it is on the disk")
    sink.away = False
    eventually(lambda: failures, "it fails")
    eventually(lambda: host.size() < 100_000, "the disk is free again")
    eventually(lambda: host.troubles == [failures[0], ""], "that is told, and that it is over")
    assert sink.numbers() == list(range(1, 31))
    assert host.balanced()


@pytest.mark.parametrize("always", [False, True])
def test_batches_of_hostile_sizes_fit_the_smallest_spool(make_host: Make, always: bool) -> None:
    host, away, back = make_host(max_bytes=1 * MIB, always=always), Moody(away=True), Moody()
    worker, largest = Worker(host.ledger("w")), 0
    pipeline = host.pipeline(away)
    sizes = (9000, 1, 9000, 1, 9000)
    for count in sizes:
        batch = worker.batch("alert", count)
        # One frame of the tiniest events, with the longest stamps; and one long event that nothing compresses.
        objects = [b'{"":1'] * count if count > 1 else [b'{"":"' + os.urandom(24_000).hex().encode() + b'"']
        batch.data = Stamp("h" * 250, "w" * 30, 2**40).write([*objects, b""], "alert")
        largest = max(largest, len(batch.data))
        pipeline.put(batch)
    assert largest > 1 * MIB
    assert pipeline.close(0.2) == 0
    assert host.size() <= 1 * MIB
    again = host.pipeline(back)
    eventually(again.idle, "all is delivered")
    assert back.numbers("alert") == list(range(1, sum(sizes) + 1))
    assert host.balanced()
    assert host.ledger("w").dropped == {}


# Disks


def test_a_read_only_disk_is_shown_and_costs_nothing_while_the_queue_has_room(
    make_host: Make, small_disk: Path
) -> None:
    host, sink = make_host(small_disk / "spool.sqlite", max_bytes=1 * MIB), Moody(away=True)
    remount_read_only(small_disk)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    pipeline.put(worker.batch(count=5))
    eventually(lambda: host.troubles, "the spool's trouble is told")
    assert "read-only" in host.troubles[0].lower()
    pipeline.put(worker.batch(count=5))
    sink.away = False
    eventually(pipeline.idle, "all is delivered")
    assert sink.numbers() == list(range(1, 11))
    assert host.balanced()


def test_a_spool_that_is_removed_under_the_agent_is_noticed_and_counted(make_host: Make) -> None:
    host, sink = make_host(), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    for _ in range(10):
        pipeline.put(worker.batch(count=5, width=20_000))  # more than the sink is offered at once
    eventually(lambda: spooled(pipeline) == 50, "it is on the disk")
    for path in host.path.parent.glob("spool0.sqlite*"):
        path.unlink()
    while not host.troubles:
        pipeline.put(worker.batch())
        eventually(lambda: pipeline.figures().queue_bytes == 0 or host.troubles, "it is stored, or found out")
    assert "removed" in host.troubles[0]
    eventually(lambda: host.path.exists() and pipeline.figures().queue_bytes == 0, "there is a new one")
    sink.away = False
    eventually(pipeline.idle, "what is left is delivered")
    lost = host.ledger("w").dropped
    assert set(lost) == {"spool_corrupt"}
    assert sink.numbers() == sorted(set(sink.numbers()))
    assert host.balanced()
    assert host.ledger("w").delivered == len(sink.numbers())


def test_a_full_disk_costs_events_and_neither_memory_nor_the_host(make_host: Make, small_disk: Path) -> None:
    host, sink = make_host(small_disk / "spool.sqlite", max_bytes=16 * MIB), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink, max_bytes=1 * MIB)
    count = 0
    while not host.troubles or host.ledger("w").dropped["master_queue"] == 0:
        batch = worker.batch(count=10)
        batch.data = b"".join(b'{"x":"' + os.urandom(1000).hex().encode() + b'"}\n' for _ in range(10))
        pipeline.put(batch)
        pipeline.put(worker.batch("alert"))
        count += 1
        assert count < 100_000
        assert pipeline.figures().queue_bytes <= 2 * MIB
    assert "full" in host.troubles[0]
    (small_disk / "spool.sqlite").stat()
    sink.away = False
    eventually(pipeline.idle, "what was kept is delivered")
    assert sink.numbers("alert") == list(range(1, count + 1))
    events = sink.numbers("event")
    assert events == sorted(set(events))
    assert len(events) + host.ledger("w").dropped.total() == count * 10
    assert host.balanced()
    eventually(lambda: host.troubles[-1] == "", "the spool is well again")


def test_with_always_a_spool_that_cannot_be_written_holds_up_nothing(make_host: Make, tmp_path: Path) -> None:
    host, sink = make_host(tmp_path / "missing" / "spool.sqlite", always=True), Moody()
    worker, settled = Worker(host.ledger("w")), list[int]()
    pipeline = host.pipeline(sink)
    for number in range(1, 31):
        batch = worker.batch()
        batch.on_settled = lambda batch: settled.append(batch.last)
        pipeline.put(batch)
        # One by one: each has to get through by itself, not with the next one's help.
        eventually(lambda number=number: sink.numbers()[-1:] == [number], "it is delivered")
    assert settled == list(range(1, 31))
    assert host.balanced()


def test_the_last_of_the_disk_is_left_to_the_host(make_host: Make, small_disk: Path) -> None:
    host, sink = make_host(small_disk / "spool.sqlite", max_bytes=2 * MIB, keep_free=1 * MIB), Moody(away=True)
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(sink)
    while not host.troubles:
        batch = worker.batch()
        batch.data = b'{"x":"' + os.urandom(10_000).hex().encode() + b'"}\n'
        pipeline.put(batch)
    assert "keep_free" in host.troubles[0]
    found = os.statvfs(small_disk)
    assert found.f_bavail * found.f_frsize > 512 * 1024
    assert pipeline.figures().spool is not None


@pytest.mark.parametrize("damage", ["garbage", "truncated", "holes", "schema", "rows"])
def test_a_spool_that_cannot_be_read_is_set_aside_and_begun_anew(make_host: Make, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "spool.sqlite"
    first, away = make_host(path), Moody(away=True)
    worker = Worker(first.ledger("w"))
    pipeline = first.pipeline(away)
    for _ in range(40):
        batch = worker.batch()
        batch.data = b'{"x":"' + os.urandom(10_000).hex().encode() + b'"}\n'
        pipeline.put(batch)
    assert pipeline.close(0.1) == 0
    spoil(path, damage)
    second, back = make_host(path), Moody()
    again = second.pipeline(back)
    fresh = Worker(second.ledger("v"), "v")
    back.away = True
    again.put(fresh.batch(count=3))
    eventually(lambda: not host_busy(again), "the new events are on the disk, or out")
    back.away = False
    eventually(lambda: sum(batch.count for batch in back.taken if batch.worker == "v") == 3, "new events get through")
    asides = [entry for entry in os.listdir(tmp_path) if ".corrupt-" in entry and "-wal" not in entry]
    assert asides == ["spool.sqlite.corrupt-1"] or damage == "holes"
    if damage != "holes":
        assert any("corrupt-1" in text for text in second.troubles)


def host_busy(pipeline: Pipeline) -> bool:
    return pipeline.figures().queue_bytes > 0


def spoil(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(os.urandom(len(data)))
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "holes":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(4096 * 8) + data[middle + 4096 * 8 :])
    else:
        with sqlite3.connect(path, isolation_level=None) as db:
            if damage == "schema":
                db.execute("CREATE TRIGGER t AFTER DELETE ON event BEGIN DELETE FROM alert; END")
            else:
                db.execute("UPDATE event SET count = 'many', epoch = x'00'")
        db.close()


def test_rows_that_were_changed_are_counted_and_the_others_delivered(make_host: Make, tmp_path: Path) -> None:
    host, away, back = make_host(), Moody(away=True), Moody()
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(away)
    for _ in range(10):
        pipeline.put(worker.batch(count=2))
    assert pipeline.close(0.1) == 0
    with sqlite3.connect(host.path, isolation_level=None) as db:
        db.execute("UPDATE event SET data = x'7b7d0a7b7d0a' WHERE first = 5")
    db.close()
    again = host.pipeline(back)
    eventually(again.idle, "all is delivered")
    assert back.numbers() == [number for number in range(1, 21) if number not in (5, 6)]
    assert host.ledger("w").dropped == {"spool_corrupt": 2}
    assert host.balanced()


def test_a_spool_that_somebody_else_has_open_is_left_alone_and_used_later(make_host: Make, tmp_path: Path) -> None:
    host, away, back = make_host(), Moody(away=True), Moody()
    worker = Worker(host.ledger("w"))
    pipeline = host.pipeline(away)
    pipeline.put(worker.batch(count=5))
    assert pipeline.close(0.1) == 0
    other = sqlite3.connect(host.path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    other.execute("BEGIN EXCLUSIVE")
    try:
        again = host.pipeline(back)
        assert any("another process" in text for text in host.troubles)
        again.put(worker.batch(count=5))
        eventually(lambda: back.numbers() == [6, 7, 8, 9, 10], "new events do not wait for it")
    finally:
        other.close()
    eventually(lambda: sorted(back.numbers()) == list(range(1, 11)), "the old ones follow")
    eventually(lambda: host.troubles[-1] == "", "the spool is well again")
    eventually(host.balanced, "all is booked")
    assert host.path.exists()


@pytest.mark.parametrize("what", ["folder", "link", "fifo"])
def test_what_stands_where_the_spool_should_be_is_not_touched(make_host: Make, tmp_path: Path, what: str) -> None:
    path = tmp_path / "spool.sqlite"
    if what == "folder":
        path.mkdir()
    elif what == "link":
        (tmp_path / "precious").write_text("precious")
        path.symlink_to(tmp_path / "precious")
    else:
        os.mkfifo(path)
    host, sink = make_host(path), Moody()
    pipeline = host.pipeline(sink)
    pipeline.put(Worker(host.ledger("w")).batch(count=2))
    eventually(lambda: sink.numbers() == [1, 2], "events get through")
    assert str(path) in host.troubles[0]
    if what == "link":
        assert (tmp_path / "precious").read_text() == "precious"


# kill -9

WRITER = """
import os, sys, time
from pathlib import Path
from tests.integration._spool_support import Host, Moody, Worker
path, epoch, away = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "away"
def say(word, batch):
    os.write(1, f"{word} {batch.epoch} {batch.priority} {batch.first} {batch.last}\\n".encode())
class Printing(Moody):
    def write(self, batches):
        refused = super().write(batches)
        for batch in batches:
            say("sent", batch)
        return refused
host = Host(path, always=True)
pipeline = host.pipeline(Printing(away=away))
worker = Worker(host.ledger("w"), epoch=epoch)
while True:
    for priority in ("event", "alert", "event", "metric", "event"):
        batch = worker.batch(priority, 7, 40)
        batch.on_settled = lambda batch: say("safe", batch)
        pipeline.put(batch)
    time.sleep(0.002)
"""


def test_nothing_that_was_acknowledged_is_missing_after_50_kills(make_host: Make, tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    safe: set[tuple[int, str, int]] = set()
    sent: list[tuple[int, str, int]] = []

    def note(lines: list[bytes]) -> int:
        for line in lines:
            word, epoch, priority, first, last = line.decode().split()
            numbers = [(int(epoch), priority, number) for number in range(int(first), int(last) + 1)]
            if word == "safe":
                safe.update(numbers)
            else:
                sent.extend(numbers)
        return len(lines)

    for epoch in range(1, 51):
        mode = "away" if epoch % 2 else "back"
        command = [sys.executable, "-c", WRITER, str(path), str(epoch), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            try:
                # Some come quite far, others hardly beyond their start.
                note([process.stdout.readline() for _ in range(1 + epoch * 7 % 40)])
            finally:
                process.send_signal(signal.SIGKILL)
            note([line for line in process.stdout.readlines() if line.endswith(b"\n") and len(line.split()) == 5])
    host, sink = make_host(path, always=True), Moody()
    pipeline = host.pipeline(sink)
    eventually(pipeline.idle, "all is delivered")
    kept = {
        (batch.epoch, batch.priority, number) for batch in sink.taken for number in range(batch.first, batch.last + 1)
    }
    assert len(safe) > 500
    assert safe <= kept | set(sent)
    assert host.troubles == []
