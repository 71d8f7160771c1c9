"""The files module on the real kernel: what is reported of real changes, and that the baseline equals the disk."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from garrison.workers.files import engine as engine_file
from garrison.workers.files import intake as intake_file
from garrison.workers.files import module as module_file
from garrison.workers.files import roots
from garrison.workers.files.settings import Config
from tests.integration._files_support import FAST, config, difference, running

FULL = bool(os.environ.get("GARRISON_FULL"))
"""Set it to run with the full numbers: a tree of 100,000 files, 10,000 changes in a second."""
TREE = 100_000 if FULL else 3_000
CHANGES = 10_000 if FULL else 2_000
LONG = 600.0 if FULL else 60.0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "OVERFLOW_SECONDS", 0.2)


def plant(tree: Path, count: int, folders: int = 50) -> None:
    for number in range(folders):
        folder = tree / f"d{number % 7}" / f"e{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in range(count // folders):
            (folder / f"f{file}").write_bytes(b"%d" % file)


def test_a_first_look_is_silent_and_the_baseline_equals_the_disk(tree: Path, state: Path) -> None:
    plant(tree, 200, 10)
    (tree / "link").symlink_to("d0")
    with running(config(tree), state) as module:
        assert module.changes() == []
        assert module.event(event__action="baseline-complete")["garrison"]["files"]["entries"] > 200
    assert difference(state, tree) == []


def test_a_new_file_is_reported_with_all_that_is_known_of_it(tree: Path, state: Path) -> None:
    with running(config(tree), state) as module:
        (tree / "new.txt").write_bytes(b"hello")
        event = module.change("created", tree / "new.txt")
    assert event["event"] == {
        "kind": "event",
        "category": ["file"],
        "type": ["creation"],
        "action": "created",
        "provider": "inotify",
    }
    file = event["file"]
    assert file["size"] == 5
    assert file["hash"]["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert file["uid"] == str(os.getuid())
    assert file["directory"] == str(tree)
    assert file["type"] == "file"
    assert file["mtime"].endswith("Z")
    assert file["inode"] == str((tree / "new.txt").stat().st_ino)


def test_many_writes_to_one_file_are_one_event_with_old_and_new_values(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with running(config(tree, settle_seconds=0.5, settle_max_seconds=5.0), state) as module:
        old = os.stat(path)
        with path.open("ab", buffering=0) as file:
            for _ in range(200):
                file.write(b"x")
        path.chmod(0o755)
        event = module.change("modified", path)
        module.settled()
        assert module.changes() == [("modified", str(path))]
    assert event["file"]["size"] == 203
    assert event["file"]["mode"] == "0755"
    assert {"size", "sha256", "mode", "mtime"} <= set(event["garrison"]["changed"])
    previous = event["garrison"]["previous"]
    assert previous["size"] == old.st_size
    assert previous["mode"] == "0600"
    assert previous["hash"]["sha256"] == "cba06b5736faf67e54b07b561eae94395e774c517a7d910a54369e1263ccfbd4"


def test_a_write_that_keeps_size_and_times_is_found(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"aaaa")
    with running(config(tree), state) as module:
        before = path.stat()
        with path.open("r+b", buffering=0) as file:
            file.write(b"bbbb")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        event = module.change("modified", path)
    assert event["garrison"]["changed"] == ["sha256"]


def test_a_file_that_stays_open_is_judged_all_the_same(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"a")
    with running(config(tree), state) as module, path.open("ab", buffering=0) as file:
        file.write(b"b")
        assert module.change("modified", path)["file"]["size"] == 2


def test_rights_alone_are_an_attributes_event(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"a")
    path.chmod(0o644)
    with running(config(tree), state) as module:
        path.chmod(0o4755)
        event = module.change("attributes", path)
    assert event["garrison"]["changed"] == ["mode"]
    assert event["file"]["mode"] == "4755"
    assert event["garrison"]["previous"] == {"mode": "0644"}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_another_owner_is_named(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"a")
    with running(config(tree), state) as module:
        os.chown(path, 65534, 65534)
        event = module.change("attributes", path)
    assert event["garrison"]["changed"] == ["owner", "group"]
    assert event["file"]["owner"] == "nobody"
    assert event["garrison"]["previous"]["owner"] == "root"


def test_touching_a_file_is_reported_only_where_asked_for(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"a")
    with running(config(tree), state) as module:
        os.utime(path, (1, 1))
        module.settled()
        assert module.changes() == []
        module.configure(config(tree, report_times=True))
        module.settled()
        os.utime(path, (2, 2))
        assert module.change("attributes", path)["garrison"]["changed"] == ["mtime"]


def test_a_rename_is_one_event_with_both_paths(tree: Path, state: Path) -> None:
    (tree / "a").write_bytes(b"a")
    with running(config(tree), state) as module:
        os.rename(tree / "a", tree / "b")
        event = module.change("renamed", tree / "b")
        module.settled()
        assert module.changes() == [("renamed", str(tree / "b"))]
    assert event["garrison"]["previous"]["path"] == str(tree / "a")
    assert difference(state, tree) == []


def test_an_atomic_replacement_is_a_modification(tree: Path, state: Path) -> None:
    path = tree / "a"
    path.write_bytes(b"a")
    with running(config(tree), state) as module:
        (tree / "a.tmp").write_bytes(b"b")
        os.rename(tree / "a.tmp", path)
        event = module.change("modified", path)
        module.settled()
        assert module.changes() == [("modified", str(path))]
    assert "sha256" in event["garrison"]["changed"]


def test_a_rotation_is_a_rename_and_a_creation(tree: Path, state: Path) -> None:
    path = tree / "log"
    path.write_bytes(b"a")
    with running(config(tree), state) as module:
        os.rename(path, tree / "log.1")
        path.write_bytes(b"")
        module.change("renamed", tree / "log.1")
        module.change("created", path)
        module.settled()
        assert len(module.changes()) == 2
    assert difference(state, tree) == []


def test_a_file_moved_in_is_created_and_one_moved_out_is_deleted(tree: Path, state: Path, tmp_path: Path) -> None:
    (tree / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with running(config(tree), state) as module:
        os.rename(tree / "a", tmp_path / "a")
        os.rename(tmp_path / "b", tree / "b")
        module.change("deleted", tree / "a")
        module.change("created", tree / "b")
    assert difference(state, tree) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_moves_away_is_gone_although_nothing_else_happens(
    tree: Path, state: Path, tmp_path: Path, what: str
) -> None:
    (tree / "folder").mkdir()
    (tree / "file").write_bytes(b"a")
    (tmp_path / "other").mkdir()
    with running(config(tree, settle_seconds=0.02), state) as module:
        os.rename(tree / what, tmp_path / "other" / what)
        module.change("deleted", tree / what)
    assert difference(state, tree) == []


def test_a_renamed_directory_is_one_event_and_its_files_stay_watched(tree: Path, state: Path) -> None:
    plant(tree, 40, 4)
    with running(config(tree), state) as module:
        os.rename(tree / "d0", tree / "moved")
        module.change("renamed", tree / "moved")
        (tree / "moved" / "e0" / "f0").write_bytes(b"changed")
        module.change("modified", tree / "moved" / "e0" / "f0")
        module.settled()
        assert len(module.changes()) == 2
    assert difference(state, tree) == []


def test_a_directory_moved_away_and_back_is_seen_twice(tree: Path, state: Path, tmp_path: Path) -> None:
    plant(tree, 40, 4)
    with running(config(tree), state) as module:
        os.rename(tree / "d0", tmp_path / "away")
        module.change("deleted", tree / "d0")
        module.settled()
        (tmp_path / "away" / "e0" / "f0").write_bytes(b"changed elsewhere")
        module.settled()
        os.rename(tmp_path / "away", tree / "d0")
        module.change("created", tree / "d0" / "e0" / "f0")
        module.settled()
    assert difference(state, tree) == []


def test_new_directories_have_no_race(tree: Path, state: Path) -> None:
    with running(config(tree), state) as module:
        for number in range(30):
            deep = tree / f"n{number}" / "a" / "b" / "c"
            deep.mkdir(parents=True)
            (deep / "file").write_bytes(b"x")
        for number in range(30):
            module.change("created", tree / f"n{number}" / "a" / "b" / "c" / "file")
        module.settled()
        assert len(module.changes()) == 30 * 5
        (tree / "n7" / "a" / "b" / "c" / "file").write_bytes(b"later")
        module.change("modified", tree / "n7" / "a" / "b" / "c" / "file")
    assert difference(state, tree) == []


def test_a_removed_tree_is_reported_file_by_file(tree: Path, state: Path) -> None:
    plant(tree, 40, 4)
    with running(config(tree), state) as module:
        shutil.rmtree(tree / "d1")
        module.change("deleted", tree / "d1")
        module.settled()
        assert len(module.all(event__action="deleted")) == 12
    assert difference(state, tree) == []


def test_links_are_recorded_and_never_followed(tree: Path, state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    with running(config(tree), state) as module:
        (tree / "link").symlink_to(outside)
        event = module.change("created", tree / "link")
        assert event["file"]["type"] == "symlink"
        assert event["file"]["target_path"] == str(outside)
        os.unlink(tree / "link")
        (tree / "link").symlink_to("/etc/passwd")
        changed = module.change("modified", tree / "link")
        assert changed["garrison"]["previous"]["target_path"] == str(outside)
        (outside / "secret").write_bytes(b"t")
        module.settled()
        assert not [path for _, path in module.changes() if "secret" in path]
    assert difference(state, tree) == []


def test_a_directory_swapped_for_a_link_leads_nowhere(tree: Path, state: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s")
    (tree / "d").mkdir()
    (tree / "d" / "mine").write_bytes(b"m")
    with running(config(tree), state) as module:
        shutil.rmtree(tree / "d")
        (tree / "d").symlink_to(outside)
        module.change("modified", tree / "d")
        module.change("deleted", tree / "d" / "mine")
        module.settled()
        assert not [path for _, path in module.changes() if "secret" in path]
    assert difference(state, tree) == []


def test_special_files_are_never_opened(tree: Path, state: Path) -> None:
    with running(config(tree), state) as module:
        os.mkfifo(tree / "pipe")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tree / "s"))
        for name in ("pipe", "s"):
            event = module.change("created", tree / name)
            assert event["file"]["type"] == "other"
            assert "hash" not in event["file"]


def test_large_files_are_tracked_by_their_metadata(tree: Path, state: Path) -> None:
    path = tree / "big"
    path.write_bytes(b"x" * 5000)
    with running(config(tree, hash_max_bytes=4096), state) as module:
        with path.open("r+b", buffering=0) as file:
            file.write(b"y")
        event = module.change("modified", path)
    assert "hash" not in event["file"]
    assert event["garrison"]["unhashed"] is True
    assert "content" in event["garrison"]["changed"]


def test_names_that_are_no_utf8_are_tracked(tree: Path, state: Path) -> None:
    name = os.fsdecode(b"\xff\xfe \n x")
    with running(config(tree), state) as module:
        (tree / name).write_bytes(b"x")
        module.event(event__action="created", file__name="\\xff\\xfe \n x")
    assert difference(state, tree) == []


def test_excluded_and_not_included_files_are_not_tracked(tree: Path, state: Path) -> None:
    (tree / "cache").mkdir()
    with running(config(tree, exclude=("cache", "*.tmp"), include=("*.php", "*.tmp")), state) as module:
        for name in ("a.php", "a.txt", "a.tmp", "cache/a.php"):
            (tree / name).write_bytes(b"x")
        module.change("created", tree / "a.php")
        module.settled()
        assert module.changes() == [("created", str(tree / "a.php"))]


def test_changes_while_the_agent_was_off_are_reported_at_start(tree: Path, state: Path) -> None:
    plant(tree, 40, 4)
    with running(config(tree), state):
        pass
    (tree / "d0" / "e0" / "f0").write_bytes(b"changed")
    (tree / "d1" / "e1" / "f1").unlink()
    (tree / "new").write_bytes(b"n")
    shutil.rmtree(tree / "d2")
    with running(config(tree), state) as module:
        for action, name in (("modified", "d0/e0/f0"), ("deleted", "d1/e1/f1"), ("created", "new"), ("deleted", "d2")):
            event = module.change(action, tree / name)
            assert event["tags"] == ["offline"]
            assert event["event"]["provider"] == "scan"
        before = len(module.changes())
        assert before == 3 + 12
        assert module.task("rescan")["scanning"]
        module.scanned(2)
        assert len(module.changes()) == before
    assert difference(state, tree) == []


def test_a_missing_path_that_comes_to_be_is_reported(tree: Path, state: Path) -> None:
    wanted = tree / "a" / "b" / "preload"
    with running(config(alert_paths=(str(wanted),)), state) as module:
        (tree / "a" / "b").mkdir(parents=True)
        (tree / "a" / "b" / "other").write_bytes(b"o")
        wanted.write_bytes(b"x")
        event = module.change("created", wanted)
        assert event["event"]["kind"] == "alert"
        assert event["event"]["severity"] == 47
        assert event["rule"]["id"] == "files-watched"
        assert event["threat"]["technique"]["id"] == ["T1565"]
        shutil.rmtree(tree / "a")
        module.change("deleted", wanted)
        module.settled()
        assert len(module.changes()) == 2


def test_homes_of_users_are_watched_for_authorized_keys(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "bob"
    home.mkdir(parents=True)
    monkeypatch.setattr(roots, "read_homes", lambda: ([str(home)], 0))
    monkeypatch.setattr(roots, "PERSISTENCE", [entry for entry in roots.PERSISTENCE if entry[1][0].startswith("~")])
    with running(Config(**{**FAST, "presets": ("persistence",)}), state) as module:
        (home / "notes").write_bytes(b"n")
        (home / ".ssh").mkdir(mode=0o700)
        (home / ".ssh" / "known_hosts").write_bytes(b"h")
        (home / ".ssh" / "authorized_keys").write_bytes(b"ssh-ed25519 AAAA")
        event = module.change("created", home / ".ssh" / "authorized_keys")
        assert event["event"]["kind"] == "alert"
        assert event["threat"]["technique"]["subtechnique"]["id"] == ["T1098.004"]
        os.rename(home / ".ssh", home / ".ssh2")
        module.change("deleted", home / ".ssh" / "authorized_keys")
        (home / ".ssh").symlink_to(home / ".ssh2")
        module.change("created", home / ".ssh", event__kind="alert")
        module.settled()
        assert len(module.changes()) == 3


def test_alerts_over_the_rate_leave_as_events(tree: Path, state: Path) -> None:
    with running(config(alert_paths=(str(tree),), alerts_per_minute=3), state) as module:
        for number in range(10):
            (tree / f"f{number}").write_bytes(b"x")
        module.settled()
        alerts = len(module.all(event__kind="alert"))
        assert 3 <= alerts <= 5  # the allowance grows meanwhile
        assert len(module.all(event__kind="event")) == 10 - alerts
        assert all(event["tags"] == ["alert-limited"] for event in module.all(event__kind="event"))


def test_new_paths_are_learnt_in_silence_and_old_ones_are_kept(tree: Path, state: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_bytes(b"a")
    (tree / "a").write_bytes(b"a")
    with running(config(tree), state) as module:
        hashed = module.stats()["hashed"]
        module.configure(config(tree, other))
        module.scanned(2)
        assert module.changes() == []
        assert module.stats()["hashed"] - hashed <= 2
        (other / "a").write_bytes(b"bb")
        module.change("modified", other / "a")
        module.configure(config(other))
        module.scanned(3)
        (tree / "a").write_bytes(b"bb")
        module.settled()
        assert len(module.changes()) == 1
    assert difference(state, other) == []


def test_the_task_baseline_accepts_what_is_there(tree: Path, state: Path) -> None:
    plant(tree, 40, 4)
    with running(config(tree), state):
        pass
    plant(tree, 80, 8)
    with running(config(tree, cpu_percent=100.0), state, scanned=False) as module:
        module.task("baseline")
        module.scanned(1)
        module.settled()
        module.task("baseline")
        module.settled()
        seen = len(module.changes())
        module.task("rescan")
        module.settled()
        assert len(module.changes()) == seen
        with pytest.raises(LookupError, match="rescan, baseline and stats"):
            module.task("dance")
    assert difference(state, tree) == []


def test_a_forced_overflow_ends_in_what_the_disk_has(tree: Path, state: Path, hurried: None) -> None:
    plant(tree, 200, 10)
    queue = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with running(config(tree), state) as module:
        with module.held():
            for number in range(queue // 2 + 100):
                path = tree / f"x{number % 100}"
                path.write_bytes(b"%d" % number)
                if number % 3:
                    path.unlink()
            (tree / "d0" / "e0" / "f0").write_bytes(b"lost")
            shutil.rmtree(tree / "d1")
            os.rename(tree / "d2", tree / "d9")
        module.event(event__action="overflow")
        module.change("modified", tree / "d0" / "e0" / "f0")
        module.settled()
        assert module.stats()["overflows"] >= 1
    assert difference(state, tree) == []


def test_more_changes_than_wait_end_in_a_rescan(
    tree: Path, state: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_file, "Pending", _small)
    with running(config(tree), state) as module:
        for number in range(200):
            (tree / f"f{number}").write_bytes(b"x")
        module.settled()
        assert module.stats()["full"] >= 1
    assert difference(state, tree) == []


def _small(settle: float, most: float) -> Any:
    from garrison.workers.files.pending import Pending

    return Pending(settle, most, 16)


def test_exhausted_watches_fall_back_to_looking(tree: Path, state: Path) -> None:
    plant(tree, 60, 6)
    with running(config(tree, watches_max=5, poll_seconds=0.2), state) as module:
        event = module.event(event__action="watch-limit")
        assert "fs.inotify.max_user_watches" in event["message"]
        for number in range(6):
            (tree / f"d{number}" / f"e{number}" / "f0").write_bytes(b"changed")
        (tree / "d5" / "e5" / "new").mkdir()
        (tree / "d5" / "e5" / "new" / "x").write_bytes(b"x")
        for number in range(6):
            module.change("modified", tree / f"d{number}" / f"e{number}" / "f0")
        module.change("created", tree / "d5" / "e5" / "new" / "x")
        module.configure(config(tree, poll_seconds=0.2))
        module.event(event__action="watch-limit-over")
    assert difference(state, tree) == []


def test_without_inotify_everything_is_looked_at(tree: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("garrison.workers.files.watches.INotify", refuse)
    with running(config(tree, poll_seconds=0.2), state) as module:
        (tree / "a").write_bytes(b"a")
        module.change("created", tree / "a", event__provider="poll")
        assert "max_user_instances" in module.event(event__action="watch-limit")["message"]


def test_limits_are_told_of(tree: Path, state: Path) -> None:
    plant(tree, 200, 10)
    (tree / "deep" / "a" / "b" / "c" / "d").mkdir(parents=True)
    (tree / "deep" / "a" / "b" / "c" / "d" / "x").write_bytes(b"x")
    (tree / ("n" * 200)).write_bytes(b"x")
    with running(config(tree, entries_max=100, depth_max=3, path_bytes_max=64 + len(str(tree))), state) as module:
        for setting in ("entries_max", "depth_max", "path_bytes_max"):
            module.event(event__action="limit-reached", garrison__files__setting=setting)
        assert module.stats()["entries"] <= 100


def test_a_directory_renamed_while_it_is_scanned_ends_as_the_disk_is(
    tree: Path, state: Path, hurried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "SLICE", 1e-6)
    plant(tree, TREE, 50)
    with running(config(tree), state, scanned=False) as module:
        module.until(lambda: module.stats()["hashed"] > 50, "the middle of the scan")
        assert module.stats()["scanning"]
        for number in range(30):
            module.stats()  # lets it go on a little
            os.rename(tree / f"d{number % 7}", tree / f"d{number % 7}x")
            os.rename(tree / f"d{number % 7}x" / f"e{number % 7}", tree / f"e{number}")
            os.rename(tree / f"d{number % 7}x", tree / f"d{number % 7}")
            os.rename(tree / f"e{number}", tree / f"d{number % 7}" / f"e{number % 7}")
        module.scanned()
        module.settled(LONG)
        assert module.stats()["moves"] > 0
    assert difference(state, tree) == []


def test_ten_thousand_changes_in_a_second_end_as_the_disk_is(tree: Path, state: Path, hurried: None) -> None:
    plant(tree, TREE, 50)
    with running(config(tree), state, scanned=False) as module:
        module.until(lambda: module.scans() >= 1, "the baseline", LONG)

        def storm(start: int) -> None:
            for number in range(start, start + CHANGES // 4):
                folder = tree / f"d{number % 7}"
                path = folder / f"s{number % 500}"
                path.write_bytes(b"%d" % number)
                if number % 5 == 0:
                    path.chmod(0o600)
                elif number % 5 == 1:
                    path.unlink()
                elif number % 5 == 2:
                    os.rename(path, folder / f"r{number}")
                elif number % 50 == 3:
                    (folder / f"n{number}" / "m").mkdir(parents=True)
                    (folder / f"n{number}" / "m" / "x").write_bytes(b"x")

        threads = [threading.Thread(target=storm, args=(index * CHANGES // 4,)) for index in range(4)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{CHANGES} files written in {time.monotonic() - began:.2f} s")
        module.settled(LONG)
        print(f"at rest after {time.monotonic() - began:.2f} s: {module.stats()}")
    assert difference(state, tree) == []


def test_it_stops_and_takes_settings_in_the_middle_of_a_baseline(tree: Path, state: Path) -> None:
    plant(tree, 2000, 20)
    with running(config(tree, cpu_percent=0.5), state, scanned=False) as module:
        assert module.stats()["scanning"]
        module.configure(config(tree, cpu_percent=0.6))
        assert module.stats()["scanning"]


def test_reading_keeps_to_its_rate(tree: Path, state: Path) -> None:
    (tree / "big").write_bytes(os.urandom(1024 * 1024))
    with running(config(tree, read_bytes_per_second=64 * 1024), state, scanned=False) as module:
        # The burst is five seconds' worth: the rest of the file waits.
        module.until(lambda: module.stats()["hashed_bytes"] >= 5 * 64 * 1024, "the burst")
        assert module.stats()["hashed_bytes"] < 1024 * 1024
        assert module.stats()["scanning"]


def test_degraded_it_still_reports(tree: Path, state: Path) -> None:
    with running(config(tree), state) as module:
        module.box.degraded = True
        (tree / "a").write_bytes(b"a")
        module.change("created", tree / "a")


def test_a_file_written_all_the_time_is_reported_at_intervals(tree: Path, state: Path) -> None:
    path = tree / "log"
    path.write_bytes(b"x" * 300_000)
    stop = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.wait(0.002):
                file.write(b"y" * 10)

    with running(config(tree), state) as module:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            module.change("modified", path)
        finally:
            stop.set()
            thread.join()
        module.settled()
    assert difference(state, tree) == []


def test_engine_limits_are_exposed_for_the_documentation() -> None:
    assert engine_file.CONTENT & engine_file.STRUCTURE == engine_file.STRUCTURE
