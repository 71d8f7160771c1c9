"""The books outlive the master: real files, a real kill -9, and the equation holds afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.ipc.messages import Beat, Events
from garrison.supervisor.events import journal
from garrison.supervisor.events.books import MAX_LEDGERS, Books, BooksState
from garrison.supervisor.events.checking import ProcessLedger
from garrison.supervisor.events.journal import SLOT_BYTES, Journal
from garrison.supervisor.events.ledger import NO_END, OTHER, Record, WorkerLedger
from tests.integration._tmpfs_support import MountRefusedError, tmpfs


def batch(first: int, count: int, dropped: list[tuple[int, int, str]] | None = None, priority: Any = "event") -> Events:
    return Events(priority=priority, first=first, count=count, data=b'{"a":1}\n' * count, dropped=dropped or [])


def drops(ledger: WorkerLedger) -> list[tuple[int, str, int, int, str]]:
    return [(k.epoch, k.priority, k.first, k.last, k.reason) for k in ledger.ranges()]


def test_a_second_master_goes_on_where_the_first_one_was_killed(tmp_path: Path) -> None:
    first = Books(str(tmp_path))
    process = ProcessLedger(first.of("web"), 7)
    process.book(batch(1, 100))
    process.claim(Beat(emitted={"event": 130}))
    first.of("web").deliver(60, 7, "event", 1)
    first.of("web").drop(10, "master_queue", 7, "event", 61)
    del first  # without a word, as after kill -9

    second = Books(str(tmp_path))
    second.of("web")  # somebody has asked for it already
    assert second.begin({}) == {"web": 60}
    ledger = second.of("web")
    assert (ledger.emitted, ledger.delivered, ledger.in_flight) == (130, 60, 0)
    assert ledger.dropped == {"master_queue": 10, "lost_at_exit": 60}
    told = drops(ledger)
    assert (7, "event", 61, 70, "master_queue") in told
    lost = {n for _e, _p, a, b, reason in told if reason == "lost_at_exit" for n in range(a, b + 1)}
    assert lost == set(range(71, 131))

    third = Books(str(tmp_path))
    assert third.begin({}) == {}
    assert third.of("web").emitted == 130


def test_what_lies_in_the_spool_is_not_lost(tmp_path: Path) -> None:
    first = Books(str(tmp_path))
    first.of("web").book(7, batch(1, 100))
    first.of("web").deliver(20, 7, "event", 1)
    second = Books(str(tmp_path))
    # 11 to 20 were delivered and had not been taken out of the spool yet.
    assert second.begin({("web", 7, "event"): (70, 11, 80)}) == {"web": 20}
    ledger = second.of("web")
    assert ledger.in_flight == 60
    ledger.deliver(70, 7, "event", 11)
    assert (ledger.delivered, ledger.in_flight) == (80, 0)
    assert drops(ledger) == [(7, "event", 81, 100, "lost_at_exit")]


def test_after_a_power_cut_the_spool_says_what_had_come_since(tmp_path: Path) -> None:
    before = Books("")
    before.of("web").book(7, batch(1, 50))
    before.of("web").deliver(50, 7, "event", 1)
    state = before.state()
    # Nothing in the journals' folder: the host went down. The process had gone on, and another one had been started.
    after = Books(str(tmp_path), state)
    assert after.begin({("web", 7, "event"): (25, 41, 80), ("web", 9, "event"): (5, 1, 5)}) == {}
    ledger = after.of("web")
    assert (ledger.emitted, ledger.in_flight) == (80, 30)
    ledger.deliver(25, 7, "event", 56)
    ledger.deliver(5, 9, "event", 1)
    assert ledger.in_flight == 0
    assert (7, "event", 81, NO_END, "lost_at_exit") in drops(ledger)


def test_after_an_orderly_end_nothing_is_lost(tmp_path: Path) -> None:
    before = Books("")
    process = ProcessLedger(before.of("web"), 7)
    process.book(batch(1, 50))
    process.close()
    before.of("web").deliver(50, 7, "event", 1)
    state = before.state(clean=True)
    after = Books(str(tmp_path), state)
    assert after.begin({}) == {}
    assert (after.of("web").emitted, drops(after.of("web"))) == (50, [])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_equation_holds_through_any_number_of_killed_masters(data: st.DataObject) -> None:
    state: BooksState | None = None
    epoch = 0
    for _master in range(data.draw(st.integers(1, 4))):
        books = Books("", state)
        books.begin({})
        ledger = books.of("w")
        before = (ledger.emitted, ledger.delivered, dict(ledger.dropped))
        assert ledger.in_flight == 0
        waiting: list[tuple[int, int, int]] = []
        for _process in range(data.draw(st.integers(0, 2))):
            epoch += 1
            process, number = ProcessLedger(ledger, epoch), 1
            for what in data.draw(st.lists(st.sampled_from("bbdxlc"), max_size=12)):
                if what == "b":
                    count = data.draw(st.integers(1, 9))
                    process.book(batch(number, count))
                    waiting.append((epoch, number, count))
                    number += count
                elif what == "l":
                    process.book(batch(number + 3, 0, [(number, number + 2, "queue_full")]))
                    number += 3
                elif what == "c":
                    process.claim(Beat(emitted={"event": number - 1 + data.draw(st.integers(0, 5))}))
                    number = max(number, 1)
                elif waiting and what == "d":
                    of, first, count = waiting.pop(0)
                    ledger.deliver(count, of, "event", first)
                    ledger.deliver(count, of, "event", first)  # again, from the spool: counts once
                elif waiting:
                    of, first, count = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
                    ledger.drop(count, "master_queue", of, "event", first)
                assert ledger.in_flight == sum(count for _of, _first, count in waiting)
                if what == "c":
                    break
        assert ledger.emitted >= before[0]
        assert ledger.delivered >= before[1]
        assert all(ledger.dropped[reason] >= count for reason, count in before[2].items())
        state = books.state()
    last = Books("", state)
    last.begin({})
    ledger = last.of("w")
    assert ledger.emitted == ledger.delivered + ledger.dropped.total()


MASTER = """
import sys
from garrison.ipc.messages import Events
from garrison.supervisor.events.books import Books
from garrison.supervisor.events.checking import ProcessLedger
books = Books(sys.argv[1])
books.begin({})
epoch = int(sys.argv[2])
ledger = books.of("w")
process = ProcessLedger(ledger, epoch)
number = 1
out = sys.stdout
while True:
    process.book(Events(priority="event", first=number, count=10, data=b'{"a":1}\\n' * 10))
    out.write(f"b{number}\\n"); out.flush()
    if number > 50 and number % 30 == 1:
        ledger.drop(10, "master_queue", epoch, "event", number - 40)
    elif number > 50:
        ledger.deliver(10, epoch, "event", number - 40)
    number += 10
"""


def test_kill_9_at_any_moment_loses_no_count(tmp_path: Path) -> None:
    emitted = 0
    for epoch in range(1, 21):
        with subprocess.Popen(
            [sys.executable, "-c", MASTER, str(tmp_path), str(epoch)], stdout=subprocess.PIPE, text=True
        ) as master:
            assert master.stdout is not None
            last = ""
            for _line in range(random.randint(1, 400)):
                last = master.stdout.readline()
            master.send_signal(signal.SIGKILL)
            rest = master.stdout.read().splitlines()
        said = [line for line in (last.strip(), *rest) if line.startswith("b")]
        known = int(said[-1][1:]) + 9 if said else 0
        books = Books(str(tmp_path))
        record = books.state().records[0]
        # What was said to be booked is booked, and at most one batch that was not yet said.
        assert known <= record.emitted - emitted <= known + 10
        books.begin({})
        ledger = books.of("w")
        assert ledger.emitted == ledger.delivered + ledger.dropped.total()
        emitted = ledger.emitted


def test_a_record_that_was_torn_gives_way_to_the_one_before(tmp_path: Path) -> None:
    path = str(tmp_path / "w")
    writer = Journal(path)
    for emitted in (1, 2, 3):
        writer.write(Record(worker="w", emitted=emitted))
    with open(path, "r+b") as file:
        file.seek(3 % 2 * SLOT_BYTES + 20)
        file.write(b"\xff\xff\xff")
    found = journal.read(path)
    assert found is not None
    assert found.emitted == 2


@pytest.mark.parametrize("garbage", [b"", b"x" * 100, os.urandom(70_000), b"\0" * 65536])
def test_garbage_in_the_place_of_counts_is_reported_and_done_without(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "w").write_bytes(garbage)
    books = Books(str(tmp_path))
    assert "held no counts" in books.errors[0]
    books.begin({})
    books.of("w").emit(1, "event", 1, 5)
    assert Books(str(tmp_path)).state().records[0].emitted == 5


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    folder = tmp_path / "counts"
    folder.mkdir()
    (folder / "w").symlink_to(target)
    books = Books(str(folder))
    books.of("w").emit(1, "event", 1, 5)
    assert books.error()
    assert target.read_text() == "precious"


def test_a_folder_that_cannot_be_written_costs_the_journal_and_not_the_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    books = Books(str(tmp_path / "file" / "counts"))
    ledger = books.of("w")
    ledger.emit(1, "event", 1, 5)
    assert "would not survive" in books.error()
    assert ledger.emitted == 5


def test_the_journal_comes_back_when_the_folder_does(tmp_path: Path) -> None:
    folder = tmp_path / "counts"
    books = Books(str(folder))
    folder.rmdir()
    books.of("w").emit(1, "event", 1, 5)
    assert books.error()
    folder.mkdir()
    books.mend()
    books.of("w").emit(1, "event", 6, 5)
    assert not books.error()
    assert Books(str(folder)).state().records[0].emitted == 10


def test_a_full_file_system_costs_the_journal_and_not_the_counts(tmp_path: Path) -> None:
    try:
        with tmpfs(tmp_path / "small", 64 * 1024) as folder:
            books = Books(str(folder / "counts"))
            ledger = books.of("w")
            ledger.emit(1, "event", 1, 5)
            filler = folder / "filler"
            with contextlib.suppress(OSError):
                filler.write_bytes(b"x" * 128 * 1024)
            with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
                while file.write(b"x" * 512):
                    continue
            # The other slot finds no page any more.
            ledger.emit(1, "event", 6, 5)
            assert "No space left" in books.error()
            assert ledger.emitted == 10
            found = journal.read(str(folder / "counts" / "w"))
            assert found is not None
            assert found.emitted == 5
            filler.unlink()
            books.mend()
            ledger.emit(1, "event", 11, 5)
            assert not books.error()
            assert Books(str(folder / "counts")).state().records[0].emitted == 15
            books.close()
    except MountRefusedError as error:
        pytest.skip(f"cannot mount: {error}")


def test_the_largest_record_fits_its_slot(tmp_path: Path) -> None:
    books = Books(str(tmp_path))
    ledger = books.of("w" * 32)
    for number in range(40):
        ledger.book(2**40, batch(2 * number + 2, 1, [(2 * number + 1, 2 * number + 1, f"{'r' * 28}{number:04}")]))
    for epoch in range(2**40, 2**40 + 200):
        for priority in ("alert", "state", "event", "metric"):
            first = 2**52 + 1
            ledger.emit(epoch, priority, first, 1)
            ledger.emit(epoch, priority, first + 10, 1)
            ledger.drop(1, "r" * 32, epoch, priority, first)
        ledger.close(epoch)
    assert not books.error()
    read = journal.read(str(tmp_path / ("w" * 32)))
    assert read is not None
    assert read.emitted == ledger.emitted


def test_a_workers_own_words_are_bounded() -> None:
    ledger = WorkerLedger("w")
    process = ProcessLedger(ledger, 1)
    for number in range(1, 1001):
        process.book(batch(number + 1, 0, [(number, number, f"reason{number}")]))
    process.book(batch(1002, 0, [(1001, 1001, "Not A\nreason")]))
    assert ledger.dropped.total() == 1001
    assert len(ledger.dropped) <= 33
    assert ledger.dropped[OTHER] > 900


def test_books_of_removed_workers_make_room_and_those_of_others_stay(tmp_path: Path) -> None:
    books = Books(str(tmp_path))
    for number in range(MAX_LEDGERS + 10):
        books.of(f"w{number}").emit(1, "event", 1, 1)
        books.of(f"w{number}").deliver(1, 1, "event", 1)
        if number >= 20:
            books.retire(f"w{number}")
    assert len(books.all()) <= MAX_LEDGERS
    assert all(f"w{number}" in books.all() for number in range(20))
    assert len(os.listdir(tmp_path)) <= MAX_LEDGERS
