from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor import logs, logsinks
from garrison.supervisor.logsinks import FileSink, Line, StderrSink, escape


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_core", logs._Core())
    yield
    logs.stop(10)


def texts(folder: Path) -> list[str]:
    found: list[str] = []
    for index in (0, 1):
        path = folder / f"garrison.{index}.log"
        found += path.read_text().splitlines() if path.exists() else []
    return [line.split(" ", 1)[1] for line in found]


def run(script: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from garrison.supervisor import logs\n" + script]
    return subprocess.run(command, capture_output=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def test_lines_go_straight_to_standard_error_before_the_start() -> None:
    done = run('logs.get("a.b").warning("hello %s", "you")\nlogs.get("a").debug("no")')
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning a\.b: hello you\n", done.stderr)


def test_lines_go_to_standard_error_and_the_files(tmp_path: Path) -> None:
    done = run(
        "import sys\nlog = logs.get('a')\nlogs.start('debug', folder=sys.argv[1])\n"
        "log.debug('1')\nlog.info('2')\nlog.notice('3')\nlog.warning('4')\nlog.error('5')\nlog.critical('6')\n"
        "log.log('emerg', '7')\nassert logs.stop(10)".replace("sys.argv[1]", repr(str(tmp_path)))
    )
    expected = [
        "debug a: 1", "info a: 2", "notice a: 3", "warning a: 4", "err a: 5", "crit a: 6", "emerg a: 7",
    ]  # fmt: skip
    assert [line.split(" ", 1)[1] for line in done.stderr.decode().splitlines()] == expected
    assert texts(tmp_path) == expected


def test_the_journal_gets_a_priority_instead_of_a_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        script = (
            "from garrison.supervisor import logs\nlogs.get('a').error('before')\nlogs.start('info')\n"
            "logs.get('a').notice('after')\nlogs.stop(10)"
        )
        subprocess.run([sys.executable, "-c", script], stderr=theirs.fileno(), env=environ, timeout=60)
        ours.settimeout(10)
        assert ours.recv(4096) == b"<3>a: before\n<5>a: after\n"


def test_a_journal_that_is_not_this_descriptor_is_not_believed() -> None:
    read, write = os.pipe()
    try:
        assert not logsinks.is_journal(write, {"JOURNAL_STREAM": "1:2"})
        assert not logsinks.is_journal(-1, {"JOURNAL_STREAM": "1:2"})
    finally:
        os.close(read)
        os.close(write)


def test_a_level_applies_to_a_source_and_what_is_below_it(tmp_path: Path) -> None:
    logs.start("warning", folder=str(tmp_path))
    one, two = logs.get("worker.one.sub"), logs.get("worker.two")
    logs.set_level("debug", "worker.one")
    assert one.enabled("debug")
    assert not two.enabled("notice")
    assert logs.get("worker.one").enabled("debug")  # made after the change
    logs.set_level(None, "worker.one")
    assert not one.enabled("info")
    logs.set_level("info")
    assert one.enabled("info")
    with pytest.raises(ValueError, match="there are: debug"):
        logs.set_level("loud")  # type: ignore[arg-type]


def test_arguments_are_not_formatted_for_a_line_that_is_not_written() -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("was formatted")

    logs.get("a").debug("%s", Costly())


def test_a_line_that_cannot_be_formatted_is_still_a_line(tmp_path: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    logs.start("info", folder=str(tmp_path))
    logs.get("a").info("%d", "x")
    logs.get("a").info("%s", Broken())
    assert logs.flush(30)
    assert texts(tmp_path) == [
        "info a: %d (its 1 arguments cannot be formatted: TypeError)",
        "info a: %s (its 1 arguments cannot be formatted: RuntimeError)",
    ]


@given(st.text())
def test_no_text_can_make_a_second_line_or_move_a_terminals_cursor(text: str) -> None:
    line = logsinks.for_people(Line(0.0, 1, "a", escape(text)))
    assert line.count(b"\n") == 1
    assert line.decode().rstrip("\n").isprintable()


def test_control_characters_and_direction_marks_are_shown() -> None:
    assert escape("a\nb\x1b[1m\u202e\u2028\udc80") == r"a\nb\x1b[1m\u202e\u2028\udc80"


def test_a_long_text_is_cut() -> None:
    text = escape("\x01" * 100_000)
    assert len(text) < logsinks.MAX_TEXT_CHARACTERS + 100
    assert text.endswith("(91808 characters cut)")


def test_an_exception_is_logged_with_its_traceback_a_line_each(tmp_path: Path) -> None:
    logs.start("info", folder=str(tmp_path))
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logs.get("a").exception("it failed")
    assert logs.flush(30)
    found = texts(tmp_path)
    assert found[0] == "err a: it failed"
    assert found[-2:] == ["err a: | ValueError: first", "err a: | second"]


def test_a_source_over_its_rate_is_suppressed_counted_and_reported(tmp_path: Path) -> None:
    logs.start("info", folder=str(tmp_path))
    for number in range(400):
        logs.get("loud").info("%d", number)
    logs.get("quiet").info("still here")
    logs.get("loud").critical("not limited")
    suppressed = logs.counters().suppressed
    assert logs.stop(30)
    found = texts(tmp_path)
    assert "info quiet: still here" in found
    assert "crit loud: not limited" in found
    lines = sum(line.startswith("info loud:") for line in found)
    assert lines + suppressed == 400
    reported = [int(match.group(1)) for line in found if (match := re.match(r"warning loud: (\d+) lines suppr", line))]
    assert sum(reported) == suppressed


def test_suppressed_lines_are_reported_though_their_source_fell_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "NOTE_SECONDS", 0.05)
    logs.start("info", folder=str(tmp_path))
    for number in range(400):
        logs.get("loud").info("%d", number)
    writer = logs._core.writer
    assert writer is not None
    for _ in range(1000):
        if any("lines suppressed" in line for line in texts(tmp_path)):
            break
        writer.thread.join(0.05)
    assert any("lines suppressed: more than 20 a second" in line for line in texts(tmp_path))


def test_a_stuck_standard_error_blocks_neither_callers_nor_the_files(tmp_path: Path) -> None:
    read, write = os.pipe()
    try:
        script = (
            "import sys\nfrom garrison.supervisor import logs\n"
            f"logs.start('info', folder={str(tmp_path)!r}, max_bytes=2**20)\n"
            "for n in range(100): logs.get(f's{n % 10}').info('%04d ' + 'x' * 4000, n)\n"
            "assert logs.flush(50)\nc = logs.counters()\nprint(c.stderr_lost, c.dropped)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], stderr=write, stdout=subprocess.PIPE, timeout=60, check=True
        )
        lost, dropped = map(int, done.stdout.split())
        assert lost > 50  # a pipe holds 64 KiB
        assert dropped == 0
        assert len(texts(tmp_path)) == 100
    finally:
        os.close(read)
        os.close(write)


def test_a_stuck_disk_drops_lines_and_reports_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    stuck, free = threading.Event(), threading.Event()
    real = FileSink.write

    def write(self: FileSink, line: Line, now: float) -> str:
        stuck.set()
        assert free.wait(60)
        return real(self, line, now)

    monkeypatch.setattr(FileSink, "write", write)
    logs.start("info", folder=str(tmp_path))
    try:
        logs.get("a").critical("first")
        assert stuck.wait(30)
        for number in range(1500):
            logs.get("a").critical("%d", number)
        assert logs.counters().dropped == 1501 - logs.MAX_QUEUED_LINES
    finally:
        free.set()
    assert logs.stop(60)
    found = texts(tmp_path)
    assert sum(line.startswith("crit a:") for line in found) == logs.MAX_QUEUED_LINES
    assert "warning supervisor.logs: 501 lines suppressed: they came faster than they could be written" in found


def test_the_queue_is_bounded_in_bytes_too() -> None:
    writer = logs._Writer(None, None)
    taken = 0
    while writer.put(Line(0.0, 1, "a", "x" * 8000)):
        taken += 1
    assert taken == logs.MAX_QUEUED_BYTES // 8200
    assert writer.dropped == 1


def test_files_that_cannot_be_written_are_reported_once_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    sink = FileSink(str(tmp_path / "log"), 4096)
    line = Line(0.0, 1, "a", "text")
    assert "cannot be written" in sink.write(line, 0.0)
    assert sink.write(line, 1.0) == ""  # left alone for a while
    assert sink.write(line, 11.0) == ""  # tried in vain, said already
    assert sink.lost == 3
    (tmp_path / "log").unlink()
    assert "3 lines are missing there" in sink.write(line, 22.0)
    assert sink.error == ""
    sink.close()
    found = texts(tmp_path / "log")
    assert re.match(r"warning supervisor\.logs: 3 lines are missing here: .*no folder", found[0])
    assert found[1] == "info a: text"


def test_reopen_follows_a_moved_file(tmp_path: Path) -> None:
    logs.start("info", folder=str(tmp_path))
    logs.get("a").info("one")
    assert logs.flush(30)
    (tmp_path / "garrison.0.log").rename(tmp_path / "old")
    logs.reopen()
    logs.get("a").info("two")
    assert logs.flush(30)
    assert texts(tmp_path) == ["info a: two"]


def test_the_number_of_sources_is_bounded() -> None:
    for number in range(logs.MAX_SOURCES + 10):
        logs.get(f"s{number}")
    assert logs.get("one more") is logs.get("other")
    assert len(logs._core.loggers) <= logs.MAX_SOURCES + 1
    assert logs.get("s1") is logs.get("s1")


def test_a_closed_standard_error_is_only_counted() -> None:
    done = run(
        "import os\nos.close(2)\nlogs.get('a').error('x')\nlogs.start('info')\nlogs.get('a').error('y')\n"
        "assert logs.flush(30)\nprint(logs.counters().stderr_lost)\nlogs.stop(10)"
    )
    assert done.stdout == b"2\n"


def test_standard_error_whose_reader_is_gone_is_only_counted() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = StderrSink(write, {})
    sink.write(Line(0.0, 1, "a", "x"))
    assert sink.lost == 1
    sink.close()
    os.close(write)


def test_standard_error_says_what_is_missing_once_it_moves_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsinks, "STDERR_PATIENCE_SECONDS", 0.01)
    read, write = os.pipe()
    try:
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
        sink = StderrSink(write, {})
        for number in range(20):
            sink.write(Line(0.0, 1, "a", f"{number} " + "x" * 1000))
        assert sink.lost > 0
        assert os.get_blocking(write)  # shared with other processes, so it is left as it is
        data = os.read(read, 65536)
        sink.write(Line(0.0, 1, "a", "last"))
        data += os.read(read, 65536)
        sink.close()
        lines = data.decode().splitlines()
        assert f"{sink.lost} lines are missing here" in lines[-2]
        assert lines[-1].endswith("a: last")
        assert all(re.match(r"1970-01-01T00:00:00\.000Z \w+ [\w.]+: ", line) for line in lines)
    finally:
        os.close(read)
        os.close(write)


def test_a_terminal_that_is_held_does_not_hold_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logsinks, "STDERR_PATIENCE_SECONDS", 0.01)
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        termios.tcflow(slave, termios.TCOOFF)  # what Ctrl-S does
        sink = StderrSink(slave, {})
        for _ in range(200):
            sink.write(Line(0.0, 1, "a", "x" * 1000))
        assert sink.lost > 0
        sink.close()
    finally:
        os.close(master)
        os.close(slave)


def test_what_libraries_log_is_captured(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logs.start("info", folder=str(tmp_path))
        logs.capture_stdlib()
        library = logging.getLogger("library")
        library.info("no")
        library.warning("a %(b)s", {"b": "c"})
        library.error("%d", "x")
        assert logs.flush(30)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert texts(tmp_path) == [
        "warning python.library: a c",
        "err python.library: %d (its arguments cannot be formatted: TypeError)",
    ]


def test_the_log_does_not_load_the_standard_librarys() -> None:
    done = run("import sys\nlogs.start('info')\nprint('logging' in sys.modules)\nlogs.stop(10)")
    assert done.stdout == b"False\n"


def test_ten_writers_never_split_a_line(tmp_path: Path) -> None:
    import threading

    logs.start("info", folder=str(tmp_path), max_bytes=64 * 1024)
    seen: set[str] = set()

    def write(number: int) -> None:
        log = logs.get(f"source{number}")
        for turn in range(40):
            log.critical("%d %s", turn, f"{'x' * (turn * 7)}\n2030 forged\r\x1b[2J")
            logs.flush(30)  # so that none is dropped: this is about whole lines, not about bounds

    threads = [threading.Thread(target=write, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.update(texts(tmp_path))
        threads[0].join(0.01)
    assert logs.flush(30)
    assert logs.counters().dropped == 0
    assert all((tmp_path / f"garrison.{index}.log").stat().st_size <= 64 * 1024 for index in (0, 1))
    expected = {
        f"crit source{number}: {turn} {'x' * (turn * 7)}\\n2030 forged\\r\\x1b[2J"
        for number in range(10)
        for turn in range(40)
    }
    final = texts(tmp_path)
    assert set(final) <= expected
    assert len(final) == len(set(final))
    assert {line for line in seen if line in expected} | set(final) == expected


def test_files_can_be_changed_and_given_up_while_it_runs(tmp_path: Path) -> None:
    logs.start("info", folder=str(tmp_path / "one"))
    logs.get("a").info("first")
    logs.set_files(str(tmp_path / "two"), 64 * 1024)
    logs.get("a").info("second")
    logs.set_files(None, 1)
    logs.get("a").info("third")
    assert logs.flush(30)
    assert texts(tmp_path / "one") == ["info a: first"]
    assert texts(tmp_path / "two") == ["info a: second"]


def test_lines_lost_by_files_that_were_given_up_stay_counted(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("in the way")
    logs.start("info", folder=str(tmp_path / "log"))
    logs.get("a").info("lost")
    logs.set_files(str(tmp_path / "other"), 64 * 1024)
    logs.get("a").info("kept")
    assert logs.flush(30)
    assert (logs.counters().file_lost, logs.counters().file_error) == (1, "")
    assert texts(tmp_path / "other") == ["info a: kept"]


def test_the_listener_sees_warnings_within_the_rate_of_their_source_and_nothing_else(tmp_path: Path) -> None:
    heard: list[Line] = []
    logs.start("info", folder=str(tmp_path))
    logs.listen(heard.append)
    logs.get("a").notice("no")
    logs.get("a").warning("yes")
    for number in range(1000):
        logs.get("b").error("%d", number)
    logs.listen(None)
    logs.get("a").error("no more")
    assert [(line.source, line.text) for line in heard[:2]] == [("a", "yes"), ("b", "0")]
    assert logs.BURST_LINES <= len(heard) < 1000
