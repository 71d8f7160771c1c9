"""The etcd store while something is wrong with etcd, the network or its rights: nothing is lost, all is said."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from garrison.supervisor.stores.etcd import lifecycle
from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.credentials import Files
from garrison.supervisor.stores.etcd.endpoints import Address, Endpoint
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.store import Timing
from tests.etcd.cluster import Cluster, EtcdctlError, Member, free_port, until
from tests.integration._etcd_support import HOST, connected, endpoints_of, lost, opened
from tests.integration._store_support import Recorder

SERVER = "/hids/server/config"
ALL, OWN = f"{SERVER}/@all", f"{SERVER}/{HOST}"
PROCESS = f"{OWN}/worker/process"
STOP = f"{ALL}/killswitch"

Make = Callable[..., Cluster]


def _error(recorder: Recorder) -> str:
    return recorder.status.error if recorder.status is not None else ""


def test_a_change_while_etcd_was_away_is_seen_when_it_is_back(make_etcd: Make) -> None:
    cluster = make_etcd(1)
    with opened(cluster) as (store, recorder):
        recorder.wait(connected(recorder))
        cluster.kill()
        recorder.wait(lost(recorder))
        assert "stays in force" in _error(recorder)
        assert store.status().stale_seconds >= 0
        cluster.start()
        cluster.put(PROCESS, "stop")
        recorder.wait_value(PROCESS, b"stop")
        recorder.wait(connected(recorder))
        assert _error(recorder) == ""
    assert len({snapshot.history for snapshot in recorder.snapshots}) == 1


def test_a_compaction_while_the_agent_was_away_is_no_matter(make_etcd: Make) -> None:
    cluster = make_etcd(1)
    cluster.put(PROCESS, "start")
    with opened(cluster) as (_, recorder):
        recorder.wait_value(PROCESS, b"start")
        cluster.put(STOP, "on")
        recorder.wait(lambda: recorder.kills[-1].entries)
        cluster.kill()
        recorder.wait(lost(recorder))
        cluster.start()
        for value in ("a", "b", "stop"):
            cluster.put(PROCESS, value)
        cluster.delete(STOP)
        cluster.compact()
        recorder.wait_value(PROCESS, b"stop")
        recorder.wait(lambda: not recorder.kills[-1].entries)


def test_a_watch_behind_a_compaction_lists_anew(make_etcd: Make) -> None:
    """The server is told to compact between the listing and the watch."""
    cluster = make_etcd(1)
    with opened(cluster) as (store, recorder):
        recorder.wait(connected(recorder))
        session = store._session
        assert session is not None
        real, done = session.watch, threading.Event()

        def watch() -> None:
            if not done.is_set():
                done.set()
                cluster.put(PROCESS, "start")
                cluster.put(PROCESS, "stop")
                cluster.compact()
            real()

        session.watch = watch  # type: ignore[method-assign]
        store.request_refresh()
        recorder.wait_value(PROCESS, b"stop")
        assert done.is_set()
        recorder.wait(connected(recorder))


def test_a_restored_snapshot_is_taken_reported_and_releases_nothing(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    cluster.put(PROCESS, "start")
    saved = cluster.snapshot(tmp_path / "saved")
    for i in range(20):
        cluster.put(PROCESS, f"x{i}")
    cluster.put(STOP, "on")
    with opened(cluster) as (_, recorder):
        recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries)
        recorder.wait(connected(recorder))
        first = recorder.snapshots[-1].history
        cluster.restore(saved)
        recorder.wait_value(PROCESS, b"start")
        recorder.wait(connected(recorder))
        assert recorder.snapshots[-1].history != first
        assert "restored" in _error(recorder)
        cluster.put(PROCESS, "stop")  # the watch begins in the new history
        recorder.wait_value(PROCESS, b"stop")
        absent = [kill for kill in recorder.kills if STOP in kill.covered and STOP not in kill.entries]
        assert absent
        assert all(kill.history != first for kill in absent)


def test_a_restored_cluster_that_has_grown_past_our_revision_is_still_known_by_its_term(
    make_etcd: Make, tmp_path: Path
) -> None:
    cluster = make_etcd(1)
    saved = cluster.snapshot(tmp_path / "saved")
    for _ in range(3):
        cluster.members[0].restart()  # each start is an election: the term grows
    cluster.put(STOP, "on")
    with opened(cluster) as (_, recorder):
        recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries)
        recorder.wait(connected(recorder))
        first = recorder.snapshots[-1].history
    seed = recorder.snapshots[-1]
    cluster.restore(saved)
    while cluster.revision() <= seed.revision + 5:
        cluster.put("/other", "x")
    with opened(cluster, seed=seed) as (_, second):
        second.wait(connected(second))
        assert second.snapshots[-1].history != first
        assert "raft term" in _error(second) or "restored" in _error(second)


def test_another_cluster_at_the_same_address_is_a_new_history(make_etcd: Make) -> None:
    cluster = make_etcd(1, options=["--initial-cluster-token", "one"])
    cluster.put(PROCESS, "stop")
    with opened(cluster) as (_, recorder):
        recorder.wait_value(PROCESS, b"stop")
        first = recorder.snapshots[-1].history
        cluster._options = ("--initial-cluster-token", "two")
        cluster.empty()
        recorder.wait_value(PROCESS, None)
        assert recorder.snapshots[-1].history != first


def test_a_start_without_etcd_says_so_and_goes_on_from_what_is_known(make_etcd: Make) -> None:
    cluster = make_etcd(1)
    cluster.put(STOP, "on")
    with opened(cluster) as (_, recorder):
        recorder.wait(connected(recorder))
    seed = recorder.snapshots[-1]
    cluster.kill()
    with opened(cluster, seed=seed, seed_age=100.0) as (store, second):
        second.wait(lambda: "Connection refused" in _error(second))
        assert "stays in force" in _error(second)
        assert store.status().stale_seconds >= 100
        assert not second.snapshots
        assert not second.kills
        cluster.start()
        second.wait(connected(second))
        assert second.snapshots[-1].history == seed.history


def test_a_full_database_keeps_nobody_from_reading(make_etcd: Make) -> None:
    cluster = make_etcd(1, quota_bytes=16 * 1024 * 1024)
    cluster.put(PROCESS, "stop")
    cluster.fill_up()
    with opened(cluster) as (store, recorder):
        recorder.wait_value(PROCESS, b"stop")
        recorder.wait(connected(recorder))
        session = store._session
        assert session is not None
        with pytest.raises(EtcdError) as caught:
            session.connection.put("/hids/x", b"1")
        assert caught.value.kind == "no_space"
        cluster.make_room()
        cluster.put(PROCESS, "start")
        recorder.wait_value(PROCESS, b"start")


def _user(cluster: Cluster, folder: Path, prefix: str = "/hids/", password: str = "secret") -> Access:
    cluster.etcdctl("role", "add", "reader")
    cluster.etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", prefix)
    cluster.etcdctl("user", "add", f"agent:{password}")
    cluster.etcdctl("user", "grant-role", "agent", "reader")
    file = folder / "password"
    file.write_text(f"{password}\n")
    file.chmod(0o600)
    return Access(files=Files(password=str(file)), username="agent")


def test_a_login_whose_token_becomes_worthless_is_renewed(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    access = _user(cluster, tmp_path)
    cluster.enable_auth()
    with opened(cluster, access=access, timing=Timing(reread=10_000)) as (store, recorder):
        recorder.wait(connected(recorder))
        connection = store._connection
        assert connection is not None
        cluster.etcdctl("user", "passwd", "agent", "--interactive=false", stdin="secret")  # ends the user's tokens
        store.request_refresh()
        recorder.wait(lambda: len(recorder.snapshots) > 1)
        assert store._connection is connection
        assert connection.logins == 2
        cluster.put(PROCESS, "stop")
        recorder.wait_value(PROCESS, b"stop")


def test_a_token_that_has_expired_is_renewed(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1, options=["--auth-token-ttl", "1"])
    access = _user(cluster, tmp_path)
    cluster.enable_auth()
    (endpoint,) = endpoints_of(cluster)
    connection = Connection(Address(endpoint.host, endpoint.port, endpoint.host), access)
    try:
        connection.open()
        deadline = time.monotonic() + 60
        while connection.logins < 2:
            assert time.monotonic() < deadline
            time.sleep(3)
            connection.get(PROCESS)
    finally:
        connection.close()


def test_a_wrong_password_is_said_and_put_right_without_a_restart(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    access = _user(cluster, tmp_path)
    cluster.enable_auth()
    file = Path(access.files.password)
    file.write_text("wrong")
    with opened(cluster, access=access) as (_, recorder):
        recorder.wait(lambda: "authentication failed" in _error(recorder))
        assert "password_file" in _error(recorder)
        assert "wrong" not in _error(recorder)
        file.chmod(0o644)
        recorder.wait(lambda: "chmod 600" in _error(recorder))
        file.chmod(0o600)
        file.write_text("secret")
        recorder.wait(connected(recorder))


def test_no_login_where_one_is_needed_is_said(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    cluster.enable_auth()
    with opened(cluster) as (_, recorder):
        recorder.wait(lambda: "user name is empty" in _error(recorder))


def test_a_login_where_none_is_needed_does_no_harm(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    access = _user(cluster, tmp_path)
    with opened(cluster, access=access) as (_, recorder):
        recorder.wait(connected(recorder))


def test_a_right_that_is_missing_is_a_failure_and_no_absence(make_etcd: Make, tmp_path: Path) -> None:
    cluster = make_etcd(1)
    cluster.put(STOP, "on")
    cluster.put(PROCESS, "stop")
    access = _user(cluster, tmp_path)
    cluster.enable_auth()
    with opened(cluster, access=access) as (store, recorder):
        recorder.wait_value(PROCESS, b"stop")
        cluster.etcdctl("role", "revoke-permission", "reader", "--prefix=true", "/hids/")
        store.request_refresh()
        recorder.wait(lambda: "permission denied" in _error(recorder))
        cluster.etcdctl("role", "grant-permission", "reader", "--prefix=true", "read", "/hids/")
        recorder.wait(connected(recorder))
    assert all(kill.entries for kill in recorder.kills)
    assert all(PROCESS in snapshot.entries for snapshot in recorder.snapshots)


def test_a_name_that_does_not_resolve_costs_nothing_where_others_work(make_etcd: Make) -> None:
    cluster = make_etcd(1)
    endpoints = [Endpoint("no-such-host.invalid", 2379), *endpoints_of(cluster), Endpoint("127.0.0.1", free_port())]
    with opened(endpoints) as (_, recorder):
        recorder.wait(connected(recorder))


def test_names_that_do_not_resolve_are_named(tmp_path: Path) -> None:
    with opened([Endpoint("no-such-host.invalid", 2379)]) as (_, recorder):
        recorder.wait(lambda: "no-such-host.invalid does not resolve" in _error(recorder))


def test_the_next_endpoint_is_taken_when_one_is_killed_and_when_one_hangs(etcd_cluster: Cluster) -> None:
    recorder = Recorder()
    with opened(etcd_cluster, recorder=recorder) as (store, _):
        recorder.wait(connected(recorder))
        member = _member(etcd_cluster, store.status().endpoint)
        member.kill()
        try:
            _put(etcd_cluster, "stop", without=member)
            _wait(recorder, lambda: recorder.value(PROCESS) == b"stop", 60)
        finally:
            member.start()
        etcd_cluster.wait_healthy()
        recorder.wait(connected(recorder))
        member = _member(etcd_cluster, store.status().endpoint)
        member.stop()
        try:
            _put(etcd_cluster, "start", without=member)
            _wait(recorder, lambda: recorder.value(PROCESS) == b"start", 60)
        finally:
            member.cont()
        etcd_cluster.wait_healthy()


def test_a_member_that_is_cut_off_is_left(etcd_cluster: Cluster) -> None:
    recorder = Recorder()
    with opened(etcd_cluster, recorder=recorder) as (store, _):
        recorder.wait(connected(recorder))
        member = _member(etcd_cluster, store.status().endpoint)
        member.isolate()
        try:
            _put(etcd_cluster, "cut", without=member)
            _wait(recorder, lambda: recorder.value(PROCESS) == b"cut", 60)
            assert store.status().endpoint != member.endpoint
        finally:
            member.heal()
        etcd_cluster.wait_healthy()


def _put(cluster: Cluster, value: str, *, without: Member) -> None:
    """Put through the other members, as soon as they have a leader."""
    others = [member.endpoint for member in cluster.members if member is not without]

    def tried() -> bool:
        try:
            cluster.etcdctl("put", PROCESS, value, endpoints=others)
        except EtcdctlError:
            return False
        return True

    until(tried, "a put through the others")


def _member(cluster: Cluster, endpoint: str) -> Member:
    return next(member for member in cluster.members if member.endpoint == endpoint)


def _wait(recorder: Recorder, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, recorder.calls[-5:]
        time.sleep(0.05)


def test_sessions_leave_nothing_behind(make_etcd: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads and descriptors after the hundredth session as after the tenth (GARRISON_FULL=1: a thousand)."""
    count = 1000 if os.environ.get("GARRISON_FULL") else 100
    monkeypatch.setattr(lifecycle, "CAP_SECONDS", 0.01)  # the pace is not what is looked at here
    monkeypatch.setattr(lifecycle, "BASE_SECONDS", 0.01)
    cluster = make_etcd(1)
    sessions: list[Connection] = []
    with opened(cluster, timing=Timing()) as (store, recorder):
        recorder.wait(connected(recorder))
        figures = []
        for number in range(count):
            before = store._connection
            assert before is not None
            before.close()
            _wait(recorder, lambda before=before: _replaced(store._connection, before) and store.status().connected, 60)  # type: ignore[misc]
            sessions.append(before)
            if number in (9, count - 1):
                figures.append(_settled())
        early, last = figures
        deadline = time.monotonic() + 60
        while any(now > then for then, now in zip(early, last, strict=True)) and time.monotonic() < deadline:
            last = _settled()  # on a busy machine gRPC takes its time to end the threads of the last session
        assert all(now <= then for then, now in zip(early, last, strict=True)), (early, last)
        assert all(session.closed for session in sessions)
        cluster.put(PROCESS, "stop")
        recorder.wait_value(PROCESS, b"stop")


def _replaced(now: Connection | None, before: Connection) -> bool:
    return now is not None and now is not before


def _settled() -> tuple[int, int]:
    """Return the numbers of this process's threads and descriptors, when they have stopped changing."""
    figures: list[tuple[int, int]] = []
    while len(figures) < 20 or len(set(figures[-10:])) > 1:
        figures.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        time.sleep(0.05)
        assert len(figures) < 1000
    return figures[-1]
