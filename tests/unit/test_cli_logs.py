"""`garrison logs`: reading a log that changes between two files."""

from __future__ import annotations

import os
from pathlib import Path

from garrison.fleet.cli.logs import LogTail, _wanted
from garrison.supervisor.alternating import AlternatingFile


def line(number: int, level: str = "info", source: str = "agent") -> str:
    return f"2026-01-02T03:04:05.678Z {level} {source}: number {number}"


def test_the_past_comes_in_order_of_age(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_text("newer\n")
    paths[1].write_text("older\n")
    os.utime(paths[1], ns=(1, 1))
    assert list(LogTail([str(path) for path in paths]).past()) == ["older", "newer"]


def test_every_line_is_seen_once_across_many_changes_of_file(tmp_path: Path) -> None:
    with AlternatingFile(str(tmp_path / "garrison.log"), 400) as log:
        log.write(b"first\n")
        tail = LogTail([str(tmp_path / "garrison.0.log"), str(tmp_path / "garrison.1.log")])
        seen = list(tail.past())
        for number in range(60):
            log.write(line(number).encode() + b"\n")
            seen += tail.news()
    assert seen == ["first", *(line(number) for number in range(60))]


def test_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one\ntw")
    tail = LogTail([str(path)])
    assert list(tail.past()) == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert list(tail.news()) == ["two"]


def test_level_and_source_filter_lines() -> None:
    assert _wanted(line(1, "warning", "worker.process"), "warning", ["process"])
    assert _wanted(line(1, "err", "worker.process.scan"), "warning", ["process"])
    assert not _wanted(line(1, "info", "worker.process"), "warning", [])
    assert not _wanted(line(1, "err", "worker.processes"), "debug", ["process"])
    assert _wanted(line(1, "err", "agent"), "debug", ["agent"])
