"""The directory store on the real kernel, in a temporary directory."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.stores.directory import DirectoryStore
from garrison.supervisor.stores.watching import Watches
from tests.integration._store_support import Recorder

HOST = "host1"
ALL = "/hids/server/config/@all"
OWN = f"/hids/server/config/{HOST}"
GROUP = "/hids/server/config/@group/web"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "store"


Open = Callable[..., tuple[DirectoryStore, Recorder]]


@pytest.fixture
def open_store(root: Path) -> Iterator[Open]:
    stores: list[DirectoryStore] = []

    def make(**options: object) -> tuple[DirectoryStore, Recorder]:
        options = {"host": HOST, "groups": ("web",)} | options
        store = DirectoryStore(str(root), **options)  # type: ignore[arg-type]
        stores.append(store)
        recorder = Recorder()
        store.start(recorder)
        return store, recorder

    yield make
    for store in stores:
        assert store.stop(20.0)


def put(root: Path, key: str, value: str | bytes) -> None:
    path = Path(f"{root}{key}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else value)


def put_renamed(root: Path, key: str, value: str) -> None:
    path = Path(f"{root}{key}")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(value)
    new.rename(path)


def test_a_missing_directory_is_made_for_root_only_and_is_an_empty_store(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    assert root.stat().st_mode & 0o777 == 0o700
    assert recorder.snapshots[0].entries == {}
    recorder.wait(lambda: recorder.status and recorder.status.connected)


def test_keys_written_later_into_directories_that_did_not_exist_are_seen(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    put(root, f"{ALL}/worker/process", "stop\n")
    recorder.wait_value(f"{ALL}/worker/process", b"stop\n")
    put(root, f"{GROUP}/worker/process", "freeze")
    recorder.wait_value(f"{GROUP}/worker/process", b"freeze")
    put(root, f"/hids/agent/config/{HOST}/plugin/process/settings", "{}")
    recorder.wait_value(f"/hids/agent/config/{HOST}/plugin/process/settings", b"{}")
    put(root, "/hids/kafka/host", "k:9092")
    recorder.wait_value("/hids/kafka/host", b"k:9092")
    Path(f"{root}{ALL}/worker/process").unlink()
    recorder.wait_value(f"{ALL}/worker/process", None)


def test_the_killswitch_is_told_before_the_snapshot(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    seen = len(recorder.calls)
    put(root, f"{ALL}/worker/process", "stop")
    put(root, f"{ALL}/killswitch", "on")
    recorder.wait_value(f"{ALL}/killswitch", b"on")
    kinds = [kind for kind, what in recorder.calls[seen:] if kind != "status"]
    first_kill = next(
        index
        for index, (kind, what) in enumerate(recorder.calls[seen:])
        if kind == "killswitch" and f"{ALL}/killswitch" in what.entries
    )
    first_snapshot = next(
        index
        for index, (kind, what) in enumerate(recorder.calls[seen:])
        if kind == "snapshot" and f"{ALL}/killswitch" in what.entries
    )
    assert first_kill < first_snapshot
    assert "killswitch" in kinds


def test_the_killswitch_is_told_at_once_although_other_values_are_half_written(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    snapshots = len(recorder.snapshots)
    seen_at_kill: list[int] = []
    recorder.on_kill = lambda seen: seen_at_kill.append(len(recorder.snapshots)) if seen.entries else None
    put(root, f"{OWN}/worker/process", "")
    put(root, f"{OWN}/killswitch", "on")
    recorder.wait(lambda: seen_at_kill)
    assert seen_at_kill[0] == snapshots


def test_a_truncating_writer_never_shows_an_empty_killswitch(root: Path, open_store: Open) -> None:
    put(root, f"{ALL}/killswitch", "off")
    _, recorder = open_store()
    recorder.wait_value(f"{ALL}/killswitch", b"off")
    script = f'for i in $(seq 50); do echo off > "{root}{ALL}/killswitch"; done'
    subprocess.run(["sh", "-c", script], check=True)
    put(root, f"{ALL}/worker/process", "stop")
    recorder.wait_value(f"{ALL}/worker/process", b"stop")
    for observation in recorder.kills:
        for entry in observation.entries.values():
            assert entry.value.strip() == b"off"


def test_an_empty_killswitch_counts_when_it_stays_empty(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    put(root, f"{OWN}/killswitch", "")
    entry = recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries.get(f"{OWN}/killswitch"))
    assert entry.value == b""


def test_a_deleted_killswitch_is_absent_and_covered(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/killswitch", "on")
    _, recorder = open_store()
    recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries)
    Path(f"{root}{OWN}/killswitch").unlink()
    recorder.wait(lambda: f"{OWN}/killswitch" in recorder.kills[-1].covered and not recorder.kills[-1].entries)
    assert recorder.kills[-1].history == recorder.kills[0].history


def test_a_killswitch_that_is_moved_away_and_back_is_never_told_absent(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/killswitch", "on")
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/killswitch", b"on")
    path = f"{root}{OWN}/killswitch"
    for _ in range(20):  # as an editor does that keeps a backup
        os.rename(path, path + "~")
        put(root, f"{OWN}/killswitch", "on")
    put(root, f"{OWN}/worker/process", "stop")
    recorder.wait_value(f"{OWN}/worker/process", b"stop")
    told = [seen for seen in recorder.kills if seen.entries]
    assert recorder.kills[recorder.kills.index(told[0]) :] == told


def test_a_thousand_changes_come_as_a_few_snapshots_and_the_last_one_wins(root: Path, open_store: Open) -> None:
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    before = len(recorder.snapshots)
    for number in range(1000):
        put_renamed(root, f"{OWN}/worker/process/reset", str(number))
    recorder.wait_value(f"{OWN}/worker/process/reset", b"999")
    assert len(recorder.snapshots) - before < 500
    revisions = [snapshot.revision for snapshot in recorder.snapshots]
    assert revisions == sorted(revisions)


def test_a_key_that_has_children_keeps_its_own_value_in_a_file_of_its_directory(root: Path, open_store: Open) -> None:
    put(root, f"{ALL}/worker/process/@value", "stop")
    put(root, f"{ALL}/worker/process/log_level", "debug")
    put(root, f"{ALL}/killswitch/@value", "on")
    _, recorder = open_store()
    recorder.wait_value(f"{ALL}/worker/process", b"stop")
    assert recorder.value(f"{ALL}/worker/process/log_level") == b"debug"
    assert recorder.kills[-1].entries[f"{ALL}/killswitch"].value == b"on"


def test_a_scope_that_is_renamed_away_takes_its_keys_along(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/worker/process", "stop")
    put(root, f"{ALL}/worker/process", "start")
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/worker/process", b"stop")
    os.rename(f"{root}{OWN}", f"{root}{OWN}.old")
    recorder.wait_value(f"{OWN}/worker/process", None)
    os.rename(f"{root}{OWN}.old", f"{root}{OWN}")
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert snapshot.history == recorder.snapshots[0].history


def test_a_root_that_is_removed_leaves_the_last_snapshot_and_its_return_is_another_history(
    root: Path, open_store: Open
) -> None:
    put(root, f"{OWN}/killswitch", "on")
    store, recorder = open_store()
    first = recorder.wait_value(f"{OWN}/killswitch", b"on")
    shutil.rmtree(root)
    recorder.wait(lambda: recorder.status and not recorder.status.connected)
    assert str(root) in store.status().error
    assert store.status().stale_seconds >= 0
    assert not root.exists()
    root.mkdir()
    recorder.wait(lambda: recorder.status and recorder.status.connected)
    recorder.wait(lambda: recorder.snapshots[-1].history != first.history)
    assert recorder.snapshots[-1].entries == {}
    absent = [seen for seen in recorder.kills if seen.covered and not seen.entries and seen.history == first.history]
    assert absent == recorder.kills[: len(absent)]


def test_a_tree_that_is_emptied_as_a_whole_is_another_history(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/killswitch", "on")
    _, recorder = open_store()
    first = recorder.wait_value(f"{OWN}/killswitch", b"on")
    os.rename(f"{root}/hids", f"{root}/away")
    recorder.wait_value(f"{OWN}/killswitch", None)
    assert recorder.snapshots[-1].history != first.history


def test_a_killswitch_deleted_alone_is_no_other_history(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/killswitch", "on")
    _, recorder = open_store()
    first = recorder.wait_value(f"{OWN}/killswitch", b"on")
    os.unlink(f"{root}{OWN}/killswitch")
    recorder.wait_value(f"{OWN}/killswitch", None)
    assert recorder.snapshots[-1].history == first.history


def test_a_root_that_is_a_link_is_followed_when_it_is_turned_over(root: Path, open_store: Open) -> None:
    one, two = root.with_name("v1"), root.with_name("v2")
    put(one, f"{OWN}/worker/process", "stop")
    put(two, f"{OWN}/worker/process", "freeze")
    root.symlink_to(one)
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/worker/process", b"stop")
    link = root.with_name("new")
    link.symlink_to(two)
    link.rename(root)
    recorder.wait_value(f"{OWN}/worker/process", b"freeze")


def test_a_volume_of_kubernetes_is_followed_when_its_data_link_is_turned_over(root: Path, open_store: Open) -> None:
    put(root / "..1", f"{OWN}/killswitch", "off")
    put(root / "..2", f"{OWN}/killswitch", "on")
    (root / "..data").symlink_to("..1")
    (root / "hids").symlink_to("..data/hids")
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/killswitch", b"off")
    (root / "..tmp").symlink_to("..2")
    (root / "..tmp").rename(root / "..data")
    snapshot = recorder.wait_value(f"{OWN}/killswitch", b"on")
    assert snapshot.history == recorder.snapshots[0].history


def test_a_linked_value_is_watched_where_it_lies(root: Path, open_store: Open, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "switch"
    target.parent.mkdir()
    target.write_text("off")
    Path(f"{root}{OWN}").mkdir(parents=True)
    Path(f"{root}{OWN}/killswitch").symlink_to(target)
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/killswitch", b"off")
    target.write_text("on")
    recorder.wait_value(f"{OWN}/killswitch", b"on")


def test_what_is_no_regular_file_is_not_read_and_is_reported(root: Path, open_store: Open) -> None:
    base = Path(f"{root}{OWN}/worker")
    base.mkdir(parents=True)
    os.mkfifo(base / "fifo")
    (base / "dangling").symlink_to("nowhere")
    (base / "loop").symlink_to("loop")
    (base / "huge").write_bytes(b"x" * 70_000)
    listener = socket.socket(socket.AF_UNIX)
    directory = os.open(base, os.O_PATH)
    try:
        listener.bind(f"/proc/self/fd/{directory}/socket")
    finally:
        os.close(directory)
        listener.close()
    put(root, f"{OWN}/worker/fine", "stop")
    _, recorder = open_store()
    recorder.wait_value(f"{OWN}/worker/fine", b"stop")
    assert "FIFO" in recorder.error(f"{OWN}/worker/fifo")
    assert "dangling" in recorder.error(f"{OWN}/worker/dangling")
    assert "loop" in recorder.error(f"{OWN}/worker/loop")
    assert "more than 65536 bytes" in recorder.error(f"{OWN}/worker/huge")
    assert "socket" in recorder.error(f"{OWN}/worker/socket")


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "loop", "huge"])
def test_a_killswitch_that_cannot_be_read_is_there_with_its_error(root: Path, open_store: Open, kind: str) -> None:
    path = Path(f"{root}{OWN}/killswitch")
    path.parent.mkdir(parents=True)
    _, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        path.write_bytes(b"x" * 70_000)
    else:
        path.symlink_to("nowhere" if kind == "dangling" else "killswitch")
    entry = recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries.get(f"{OWN}/killswitch"))
    assert entry.error


def test_a_file_in_place_of_a_scope_is_reported_and_the_others_are_read(root: Path, open_store: Open) -> None:
    put(root, ALL, "stop")
    put(root, f"{OWN}/worker/process", "stop")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert any(problem.key == ALL and "no directory" in problem.reason for problem in snapshot.problems)


def test_a_file_in_place_of_the_root_is_an_error_that_heals(root: Path, open_store: Open) -> None:
    root.parent.mkdir(parents=True)
    root.write_text("?")
    _, recorder = open_store()
    recorder.wait(lambda: recorder.status and not recorder.status.connected and recorder.status.error)
    assert not recorder.snapshots
    root.unlink()
    put(root, f"{OWN}/worker/process", "stop")
    recorder.wait_value(f"{OWN}/worker/process", b"stop")


def test_backups_and_hidden_files_are_nobody(root: Path, open_store: Open) -> None:
    for name in ("process~", ".process.swp", "#process#", ".hidden", "process.swp"):
        put(root, f"{OWN}/worker/{name}", "stop")
    put(root, f"{OWN}/worker/process", "stop")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert list(snapshot.entries) == [f"{OWN}/worker/process"]


def test_names_that_are_no_text_are_reported(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/worker/process", "stop")
    with open(os.fsencode(f"{root}{OWN}/worker/") + b"\xff", "wb") as file:
        file.write(b"stop")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert len(snapshot.entries) == 1
    assert snapshot.problems


def test_the_hosts_next_door_are_not_looked_at(root: Path, open_store: Open) -> None:
    for number in range(300):
        put(root, f"/hids/server/config/other{number}/killswitch", "on")
    put(root, f"{OWN}/worker/process", "stop")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert list(snapshot.entries) == [f"{OWN}/worker/process"]
    looks = recorder.snapshots[:]
    put(root, "/hids/server/config/other1/worker/process", "stop")
    put(root, f"{OWN}/worker/process", "start")
    recorder.wait_value(f"{OWN}/worker/process", b"start")
    assert len(recorder.snapshots) == len(looks) + 1


def test_too_many_keys_are_reported_and_the_hosts_own_come_first(
    root: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("garrison.supervisor.stores.tree.MAX_ENTRIES", 50)
    put(root, f"{OWN}/worker/process", "stop")
    for number in range(60):
        put(root, f"{OWN}/task/{number:03}", "{}")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert len(snapshot.entries) < 50
    assert any("more than 50 names" in problem.reason for problem in snapshot.problems)


def test_other_groups_are_read_once_they_are_set(root: Path, open_store: Open) -> None:
    put(root, "/hids/server/config/@group/db/worker/process", "stop")
    put(root, "/hids/server/config/@group/old/killswitch", "on")
    store, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    assert recorder.snapshots[-1].groups == ("web",)
    store.set_groups(["db"], ["old"])
    snapshot = recorder.wait_value("/hids/server/config/@group/db/worker/process", b"stop")
    assert snapshot.groups == ("db",)
    assert recorder.kills[-1].entries["/hids/server/config/@group/old/killswitch"].value == b"on"


def test_a_refresh_delivers_again_what_has_not_changed(root: Path, open_store: Open) -> None:
    store, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    store.request_refresh()
    recorder.wait(lambda: len(recorder.snapshots) == 2)
    assert recorder.snapshots[0] == recorder.snapshots[1]


def test_a_body_is_delivered_when_it_is_there_and_whole(root: Path, open_store: Open) -> None:
    body = b'{"rules": []}'
    sha256 = hashlib.sha256(body).hexdigest()
    store, recorder = open_store()
    store.fetch_bodies([sha256])
    recorder.wait(lambda: sha256 in recorder.bodies)
    assert recorder.bodies[sha256] is None
    put(root, f"/hids/config/body/{sha256}", body[:5])
    put(root, f"/hids/config/body/{sha256}", body)
    recorder.wait(lambda: recorder.bodies[sha256] == body)


def test_values_keep_their_revisions_when_the_agent_starts_again(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/worker/process/reset", "1")
    store, recorder = open_store()
    first = recorder.wait_value(f"{OWN}/worker/process/reset", b"1")
    store.stop()
    put(root, f"{OWN}/worker/process/log_level", "debug")
    _, recorder = open_store(seed=first)
    second = recorder.wait_value(f"{OWN}/worker/process/log_level", b"debug")
    key = f"{OWN}/worker/process/reset"
    assert second.entries[key] == first.entries[key]
    assert second.history == first.history
    assert second.revision > first.revision


def test_a_tree_that_was_emptied_while_the_agent_was_away_is_another_history(root: Path, open_store: Open) -> None:
    put(root, f"{OWN}/worker/process", "stop")
    store, recorder = open_store()
    first = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    store.stop()
    shutil.rmtree(root)
    _, recorder = open_store(seed=first)
    recorder.wait(lambda: recorder.snapshots)
    assert recorder.snapshots[-1].entries == {}
    assert recorder.snapshots[-1].history != first.history


def test_without_inotify_the_directory_is_polled_and_the_status_says_so(root: Path, open_store: Open) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    store, recorder = open_store(watches=Watches(refuse))  # type: ignore[arg-type]
    recorder.wait(lambda: recorder.snapshots)
    recorder.wait(lambda: recorder.status and "max_user_instances" in recorder.status.error)
    assert store.status().connected
    put(root, f"{OWN}/killswitch", "on")
    recorder.wait_value(f"{OWN}/killswitch", b"on")


def test_a_listener_that_raises_is_shown_and_told_again(root: Path, open_store: Open) -> None:
    store, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    failures = []

    def fail(_: object) -> None:
        if not failures:
            failures.append(1)
            raise RuntimeError("no")

    recorder.on_kill = fail
    put(root, f"{OWN}/killswitch", "on")
    recorder.wait(lambda: recorder.kills[-1].entries)
    recorder.wait(lambda: any(kind == "status" and "no" in what.error for kind, what in recorder.calls))
    recorder.wait(lambda: store.status().connected)


def test_a_snapshot_can_be_cached(root: Path, open_store: Open) -> None:
    import msgspec

    put(root, f"{OWN}/worker/process", "stop")
    _, recorder = open_store()
    snapshot = recorder.wait_value(f"{OWN}/worker/process", b"stop")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot) == snapshot


def test_nothing_is_delivered_after_the_stop(root: Path, open_store: Open) -> None:
    store, recorder = open_store()
    recorder.wait(lambda: recorder.snapshots)
    assert store.stop()
    count = len(recorder.calls)
    put(root, f"{OWN}/killswitch", "on")
    store.request_refresh()
    assert len(recorder.calls) == count


def test_an_idle_store_does_not_wake_up(root: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    original = DirectoryStore._turn

    def count(store: DirectoryStore) -> None:
        looks.append(1)
        original(store)

    monkeypatch.setattr(DirectoryStore, "_turn", count)
    _, recorder = open_store()
    recorder.wait(lambda: recorder.status and recorder.status.connected)
    settled = len(looks)
    try:
        recorder._changed.acquire()
        recorder._changed.wait(1.0)  # nothing is to happen: there is no event to wait for
    finally:
        recorder._changed.release()
    assert len(looks) <= settled + 1


def test_leaving_a_group_that_had_the_only_key_is_no_other_history(root: Path, open_store: Open) -> None:
    put(root, f"{GROUP}/worker/process", "stop")
    store, recorder = open_store()
    first = recorder.wait_value(f"{GROUP}/worker/process", b"stop")
    store.set_groups([])
    recorder.wait(lambda: recorder.snapshots[-1].groups == ())
    assert recorder.snapshots[-1].entries == {}
    assert recorder.snapshots[-1].history == first.history


def test_a_listener_that_raises_at_every_status_ends_nothing(root: Path, open_store: Open) -> None:
    class Broken(Recorder):
        def on_status(self, status: object) -> None:
            raise RuntimeError("no")

    store = DirectoryStore(str(root), host=HOST)
    recorder = Broken()
    store.start(recorder)
    try:
        put(root, f"{OWN}/killswitch", "on")
        recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries)
    finally:
        assert store.stop(20.0)
