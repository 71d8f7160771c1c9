"""The baseline on real disks: killed, full, read-only, missing, damaged."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from garrison.ipc.messages import Result
from garrison.workers.files import module as module_file
from garrison.workers.files.baseline import FILE_NAME, Baseline
from garrison.workers.files.entry import FILE, Entry
from tests.integration._files_support import FAST, config, difference, running
from tests.integration._runtime_support import worker
from tests.integration._tmpfs_support import MountRefusedError, remount_read_only, tmpfs

ENTRY = Entry(FILE, 1, 0, 0, 0o644, 1, 1, 1, b"x" * 32)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(1000):
        (folder / f"d{number % 20}").mkdir(exist_ok=True)
        (folder / f"d{number % 20}" / f"f{number}").write_bytes(b"%d" % number)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with tmpfs(tmp_path / "disk", 512 * 1024) as folder:
            yield folder
    except MountRefusedError as error:
        pytest.skip(f"this machine refuses to mount a tmpfs: {error}")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "RETRY_SECONDS", 0.2)


def settings(tree: Path, **more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins({**FAST, "paths": [str(tree)], **more})
    return plain


def test_killed_during_the_baseline_it_goes_on_where_it_was(tree: Path, tmp_path: Path) -> None:
    state: Path | None = None
    for attempt in range(4):
        slow = {"cpu_percent": 8.0, "read_bytes_per_second": 64 * 1024}
        with worker(
            tmp_path / f"w{attempt}", {"files": "garrison.workers.files:FilesModule"}, state_dir=str(tmp_path / "state")
        ) as process:
            process.configure(settings(tree, **slow), cpu_trip_percent=10.0)
            state = tmp_path / "state"

            def grown(process: Any = process, attempt: int = attempt) -> bool:
                result: Result = process.ask("stats")
                return result.value["entries"] >= 100 * (attempt + 1) or not result.value["scanning"]

            process.until(grown, "a part of the baseline")
            os.kill(process.process.pid, signal.SIGKILL)
            process.process.wait()
            assert not [d for d in process.ledger.documents if "file" in d]
    assert state is not None
    (tree / "d0" / "f0").write_bytes(b"changed while it was dead")
    with running(config(tree), state) as module:
        module.settled()
        found = module.changes()
        assert set(found) <= {("modified", str(tree / "d0" / "f0"))}
    assert difference(state, tree) == []


def test_killed_at_rest_it_reports_what_changed_meanwhile(tree: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with worker(tmp_path / "w", {"files": "garrison.workers.files:FilesModule"}, state_dir=str(state)) as process:
        process.configure(settings(tree))
        process.until(lambda: "baseline-complete" in process.ledger.actions(), "the baseline")
        os.kill(process.process.pid, signal.SIGKILL)
        process.process.wait()
    (tree / "d0" / "f0").write_bytes(b"changed")
    with running(config(tree), state) as module:
        assert module.change("modified", tree / "d0" / "f0")["tags"] == ["offline"]
        module.settled()
        assert len(module.changes()) == 1
    assert difference(state, tree) == []


@needs_root
def test_a_full_disk_costs_persistence_and_no_detection(
    tree: Path, disk: Path, tmp_path: Path, impatient: None
) -> None:
    state = disk / "state"
    ballast = disk / "ballast"
    with running(config(tree), state, scanned=False) as module:
        # 1,000 entries take about 200 KiB: the disk fills up in the middle.
        with ballast.open("wb", buffering=0) as file:
            while os.statvfs(disk).f_bavail * 4096 > 64 * 1024:
                file.write(b"\0" * 4096)
        event = module.event(event__action="baseline-volatile")
        assert "disk is full" in event["message"] or "full" in event["garrison"]["files"]["reason"]
        module.scanned()
        (tree / "d0" / "f0").write_bytes(b"changed")
        module.change("modified", tree / "d0" / "f0")
        module.settled()
        assert module.stats()["entries"] == 1021
        assert len(module.changes()) == 1
        assert len(module.all(event__action="baseline-volatile")) == 1
        ballast.unlink()
        module.event(event__action="baseline-persistent")
        module.settled()
    assert difference(state, tree) == []


@needs_root
def test_a_read_only_state_directory_is_told_of_once(tree: Path, disk: Path, impatient: None) -> None:
    remount_read_only(disk)
    with running(config(tree), disk / "state") as module:
        event = module.event(event__action="baseline-volatile")
        assert "Read-only file system" in event["message"]
        (tree / "d0" / "f0").write_bytes(b"changed")
        module.change("modified", tree / "d0" / "f0")
        module.settled()
        assert len(module.all(event__action="baseline-volatile")) == 1


def test_without_a_state_directory_it_runs_in_memory(tree: Path) -> None:
    with running(config(tree), "") as module:
        module.event(event__action="baseline-volatile")
        (tree / "d0" / "f0").write_bytes(b"changed")
        module.change("modified", tree / "d0" / "f0")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"no database at all" * 100,
        lambda data: data[: len(data) // 2],
        lambda data: data[:4096] + os.urandom(len(data) - 4096),
        lambda data: data[:100] + b"\0" * 3996 + data[4096:],
    ],
    ids=["garbage", "truncated", "pages", "schema"],
)
def test_a_damaged_file_is_set_aside_and_told_of(tree: Path, tmp_path: Path, damage: Any) -> None:
    state = tmp_path / "state"
    with running(config(tree), state):
        pass
    path = state / FILE_NAME
    path.write_bytes(damage(path.read_bytes()))
    with running(config(tree), state) as module:
        event = module.event(event__action="baseline-corrupt")
        assert str(path) in event["message"]
        module.event(event__action="baseline-complete")
        module.settled()
        assert module.changes() == []
    assert (state / f"{FILE_NAME}.corrupt").exists()
    assert difference(state, tree) == []


def test_a_file_of_another_format_is_set_aside(tree: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = Baseline(str(state))
    first._db.execute("PRAGMA user_version = 99")
    first.close()
    second = Baseline(str(state))
    try:
        assert "format 99" in second.set_aside
        assert second.persistent
        assert second.count == 0
    finally:
        second.close()


def test_damage_found_at_run_time_starts_the_baseline_anew(tree: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(config(tree), state) as module:
        module.settled()

        def ruin() -> None:
            baseline = module.module._baseline
            assert baseline is not None
            baseline.commit()
            baseline._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            size = os.path.getsize(state / FILE_NAME)
            with open(state / FILE_NAME, "r+b", buffering=0) as file:
                file.seek(4096)
                file.write(os.urandom(size - 4096))
            baseline._db.execute("PRAGMA cache_size = 0")
            baseline._db.execute("PRAGMA shrink_memory")

        module.call(ruin)
        module.task("rescan")
        module.event(event__action="baseline-corrupt")
        module.settled()
    assert difference(state, tree) == []


def test_renaming_a_directory_takes_its_rows_along(tmp_path: Path) -> None:
    baseline = Baseline(str(tmp_path))
    try:
        for folder in ("/a", "/a/b", "/a/b/c", "/ab", "/a!"):
            baseline.put(folder, "x", ENTRY)
        baseline.move("/a", "/z/y")
        assert baseline.get("/z/y/b/c", "x") == ENTRY
        assert baseline.get("/z/y", "x") == ENTRY
        assert baseline.get("/a", "x") is None
        assert baseline.get("/a/b", "x") is None
        assert baseline.get("/ab", "x") == ENTRY
        assert baseline.get("/a!", "x") == ENTRY
        assert baseline.count == 5
        assert baseline.tree("/z") == "/z/y/b/c"
        baseline.drop("/z/y/b/c")
        assert baseline.count == 4
    finally:
        baseline.close()


def test_numbers_beyond_sixty_three_bits_are_kept_at_the_limit(tmp_path: Path) -> None:
    baseline = Baseline(str(tmp_path))
    try:
        baseline.put("/a", "x", ENTRY._replace(inode=2**64 - 1, mtime_ns=-(2**70)))
        found = baseline.get("/a", "x")
        assert found is not None
        assert found.inode == 2**63 - 1
        assert found.mtime_ns == -(2**63 - 1)
    finally:
        baseline.close()


def test_a_second_process_does_not_share_the_file(tmp_path: Path) -> None:
    first = Baseline(str(tmp_path))
    second = Baseline(str(tmp_path))
    try:
        assert first.persistent
        assert not second.persistent
        assert "locked" in second.trouble
    finally:
        second.close()
        first.close()
