"""The local killswitch file on the real kernel."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.supervisor.killswitch import FileReading
from garrison.supervisor.stores.killfile import KillFileWatch, read_killfile
from garrison.supervisor.stores.watching import Watches


class Readings:
    def __init__(self) -> None:
        self.all: list[FileReading] = []
        self._changed = threading.Condition()

    def __call__(self, reading: FileReading) -> None:
        with self._changed:
            self.all.append(reading)
            self._changed.notify_all()

    def wait(self, engaged: bool) -> FileReading:
        deadline = time.monotonic() + 30
        with self._changed:
            while self.all[-1].engaged != engaged:
                assert time.monotonic() < deadline, f"never engaged={engaged}: {self.all}"
                self._changed.wait(0.5)
            return self.all[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "garrison" / "killswitch"


Watch = Callable[..., tuple[KillFileWatch, Readings]]


@pytest.fixture
def watch(path: Path) -> Iterator[Watch]:
    watches: list[KillFileWatch] = []

    def make(**options: object) -> tuple[KillFileWatch, Readings]:
        readings = Readings()
        one = KillFileWatch(str(path), readings, host="h", **options)  # type: ignore[arg-type]
        watches.append(one)
        one.start()
        return one, readings

    yield make
    for one in watches:
        assert one.stop(20.0)


def test_the_first_reading_is_there_when_start_returns(path: Path, watch: Watch) -> None:
    path.parent.mkdir()
    path.write_text("on\n")
    _, readings = watch()
    assert readings.all[0].engaged


def test_a_file_in_a_directory_that_did_not_exist_engages_and_its_removal_releases(path: Path, watch: Watch) -> None:
    _, readings = watch()
    assert not readings.all[0].engaged
    path.parent.mkdir()
    path.write_text("on")
    readings.wait(engaged=True)
    path.unlink()
    readings.wait(engaged=False)
    path.touch()
    assert "empty" in readings.wait(engaged=True).reason
    path.write_text("off")
    readings.wait(engaged=False)
    path.write_text('{"engaged": true, "reason": "disk full", "by": "ada"}')
    reading = readings.wait(engaged=True)
    assert (reading.reason, reading.by) == ("disk full", "ada")


def test_a_directory_that_is_replaced_is_followed(path: Path, watch: Watch) -> None:
    path.parent.mkdir()
    path.write_text("off")
    _, readings = watch()
    path.parent.rename(path.parent.with_name("old"))
    path.parent.mkdir()
    path.write_text("on")
    readings.wait(engaged=True)


def test_a_truncating_writer_never_shows_an_empty_file(path: Path, watch: Watch) -> None:
    path.parent.mkdir()
    path.write_text("off")
    _, readings = watch()
    for _ in range(200):
        path.write_text("off")
    path.write_text("on")
    readings.wait(engaged=True)
    assert [reading.engaged for reading in readings.all] == [False, True]


def test_it_is_polled_where_there_is_no_inotify(path: Path, watch: Watch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    one, readings = watch(watches=Watches(refuse))  # type: ignore[arg-type]
    path.parent.mkdir()
    path.write_text("on")
    readings.wait(engaged=True)
    assert "max_user_instances" in one.error


@pytest.mark.parametrize(
    ("content", "engaged"),
    [
        ("on", True),
        (" ON \n", True),
        ("", True),
        ("offf", True),
        ("off\n", False),
        ('"off"', False),
        ('{"engaged": false}', False),
        ('{"engaged": "no"}', True),
        ("\ufeffoff", False),
    ],
)
def test_what_the_file_says(path: Path, content: str, engaged: bool) -> None:
    path.parent.mkdir()
    path.write_text(content)
    assert read_killfile(str(path))[0].engaged is engaged


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "loop", "huge", "binary"])
def test_what_cannot_be_read_counts_as_engaged(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("dangling", "loop"):
        path.symlink_to("nowhere" if kind == "dangling" else path.name)
    else:
        path.write_bytes(b"\xff\xfe" if kind == "binary" else b"o" * 70_000)
    reading, _ = read_killfile(str(path))
    assert reading.engaged
    assert str(path) in reading.reason


def test_no_file_and_no_directory_mean_not_engaged(path: Path) -> None:
    assert not read_killfile(str(path))[0].engaged
    path.parent.write_text("a file where a directory belongs")
    assert not read_killfile(str(path))[0].engaged
