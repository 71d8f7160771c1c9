from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from garrison.supervisor import statefile
from garrison.supervisor.alternating import AlternatingFile, AlternatingFileError
from garrison.supervisor.lock import LOCK_NAME, InstanceLock, LockError
from garrison.supervisor.logsinks import FileSink, Line
from garrison.supervisor.settings.places import FolderError
from garrison.supervisor.statefile import StateFileError
from tests.integration._tmpfs_support import MountRefusedError, remount_read_only, tmpfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")

SIZE = 256 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with tmpfs(tmp_path / "disk", SIZE) as folder:
            yield folder
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")


def fill(disk: Path, leave: int) -> Path:
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        while os.statvfs(disk).f_bavail * 4096 > leave:
            file.write(b"\0" * 4096)
    return ballast


def test_a_full_disk_leaves_whole_lines_and_says_how_much_was_written(disk: Path) -> None:
    ballast = fill(disk, 8192)
    line = b"x" * 999 + b"\n"
    with AlternatingFile(str(disk / "e.ndjson"), 2**20) as file:
        with pytest.raises(AlternatingFileError, match="disk is full") as caught:
            file.write(line * 20)
        assert caught.value.errno == errno.ENOSPC
        content = (disk / "e.0.ndjson").read_bytes()
        assert content == line * (caught.value.written // 1000)
        assert caught.value.written == 8000  # two pages of 4096 hold eight lines and a piece, which is cut
        with pytest.raises(AlternatingFileError) as caught:
            file.write(line)
        assert caught.value.written == 0
        ballast.unlink()
        file.write(line * 12)
    assert (disk / "e.0.ndjson").read_bytes() == line * 20


def test_a_torn_line_on_a_full_disk_is_closed_once_there_is_room(disk: Path) -> None:
    (disk / "e.0.ndjson").write_bytes(b"x" * 4096)
    ballast = fill(disk, 0)
    with AlternatingFile(str(disk / "e.ndjson"), 2**20) as file:
        with pytest.raises(AlternatingFileError):
            file.write(b"y\n")
        ballast.unlink()
        file.write(b"z\n")
    assert (disk / "e.0.ndjson").read_bytes() == b"x" * 4096 + b"\nz\n"


def test_a_lowered_bound_holds_though_there_is_no_room_for_a_copy(disk: Path) -> None:
    (disk / "e.0.ndjson").write_bytes(b"x" * 99 + b"\n" + b"y\n" * 5000)
    fill(disk, 0)
    with AlternatingFile(str(disk / "e.ndjson"), 8192) as file:
        file.write(b"z\n")
    assert (disk / "e.0.ndjson").read_bytes() == b"z\n"
    assert not (disk / "e.0.ndjson.cut").exists()


def test_a_log_on_a_full_disk_goes_on_when_there_is_room(disk: Path) -> None:
    sink = FileSink(str(disk), 65536)
    line = Line(0.0, 1, "a", "x" * 8000)
    ballast = fill(disk, 4096)
    assert "disk is full" in sink.write(line, 0.0)
    assert sink.write(line, 5.0) == ""
    ballast.unlink()
    assert "2 lines are missing" in sink.write(line, 11.0)
    sink.close()
    assert (disk / "garrison.0.log").read_bytes().count(b"\n") == 2


def test_a_full_disk_leaves_the_old_state(disk: Path) -> None:
    path = disk / "state"
    statefile.write(str(path), {"n": 1})
    ballast = fill(disk, 4096)
    with pytest.raises(StateFileError, match="disk is full") as caught:
        statefile.write(str(path), {"n": "x" * 20_000})
    assert caught.value.reason == "unwritable"
    assert statefile.read(str(path), dict[str, int]) == {"n": 1}
    assert sorted(os.listdir(disk)) == ["ballast", "state"]
    ballast.unlink()
    statefile.write(str(path), {"n": 2})
    assert statefile.read(str(path), dict[str, int]) == {"n": 2}


def test_a_read_only_disk_is_named_as_such(disk: Path) -> None:
    statefile.write(str(disk / "state"), {"n": 1})
    remount_read_only(disk)
    with pytest.raises(StateFileError, match="read-only"):
        statefile.write(str(disk / "state"), {"n": 2})
    assert statefile.read(str(disk / "state"), dict[str, int]) == {"n": 1}
    with pytest.raises(LockError, match="read-only"):
        InstanceLock.acquire(str(disk / LOCK_NAME))
    with pytest.raises(FolderError, match=r"run.*read-only"):
        InstanceLock.acquire(str(disk / "run" / LOCK_NAME))
    with AlternatingFile(str(disk / "e.ndjson"), 4096) as file, pytest.raises(AlternatingFileError, match="read-only"):
        file.write(b"x\n")


def test_a_lock_can_be_held_on_a_full_disk(disk: Path) -> None:
    fill(disk, 0)
    with InstanceLock.acquire(str(disk / LOCK_NAME)):
        assert (disk / LOCK_NAME).exists()
