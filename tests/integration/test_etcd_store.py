"""The etcd store on a real server: what it reads, in which order, and what changes while it watches."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from garrison.supervisor.desired import Context, WorkerBase, resolve
from garrison.supervisor.stores.base import KillObservation, Snapshot
from garrison.supervisor.stores.etcd import mirror
from garrison.supervisor.stores.etcd.store import EtcdStore
from tests.etcd.cluster import Cluster
from tests.integration._etcd_support import HOST, QUICK, connected, opened, sha256
from tests.integration._store_support import Recorder

SERVER = "/hids/server/config"
ALL, GROUP, OWN = f"{SERVER}/@all", f"{SERVER}/@group/web", f"{SERVER}/{HOST}"


@pytest.fixture(autouse=True)
def _clean(etcd: Cluster) -> Iterator[None]:
    yield
    etcd.delete("/hids/", prefix=True)


def _kinds(recorder: Recorder) -> list[str]:
    return [kind for kind, _ in recorder.calls if kind != "status"]


def test_the_killswitch_is_told_before_anything_else(etcd: Cluster) -> None:
    etcd.put(f"{ALL}/killswitch", "on")
    etcd.put(f"{OWN}/worker/process", "stop")
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
    kinds = _kinds(recorder)
    assert kinds[0] == "killswitch"
    assert kinds.index("snapshot") > 0
    assert recorder.kills[0].entries[f"{ALL}/killswitch"].value == b"on"


def test_absence_is_told_only_with_the_whole_listing(etcd: Cluster) -> None:
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
    assert recorder.kills[0].covered == frozenset()
    assert recorder.kills[-1].covered == {f"{scope}/killswitch" for scope in (ALL, GROUP, OWN)}


def test_an_empty_store_is_an_empty_snapshot(etcd: Cluster) -> None:
    with opened(etcd) as (store, recorder):
        recorder.wait(connected(recorder))
        assert recorder.snapshots[-1].entries == {}
        assert recorder.snapshots[-1].groups == ("web",)
        assert store.status().endpoint == etcd.endpoints[0]


def test_changes_arrive_one_by_one_and_keep_their_revision(etcd: Cluster) -> None:
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        revisions = []
        for value in ("stop", "start", "freeze"):
            etcd.put(f"{OWN}/worker/process", value)
            snapshot = recorder.wait_value(f"{OWN}/worker/process", value.encode())
            revisions.append(snapshot.entries[f"{OWN}/worker/process"].revision)
        assert revisions == sorted(set(revisions))
        etcd.delete(f"{OWN}/worker/process")
        recorder.wait_value(f"{OWN}/worker/process", None)


def test_a_neighbour_whose_name_begins_like_ours_concerns_nobody_here(etcd: Cluster) -> None:
    etcd.put(f"{SERVER}/{HOST}0/worker/process", "stop")
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        etcd.put(f"{SERVER}/{HOST}0/killswitch", "on")
        etcd.put(f"{SERVER}/@group/web2/worker/process", "stop")
        etcd.put(f"{OWN}/worker/process", "start")
        snapshot = recorder.wait_value(f"{OWN}/worker/process", b"start")
        assert set(snapshot.entries) == {f"{OWN}/worker/process"}
        assert not any(kill.entries for kill in recorder.kills)


def test_host_over_group_over_all_as_in_the_directory_store(etcd: Cluster) -> None:
    context = Context(
        host=HOST,
        workers={"process": WorkerBase()},
        check_budget=lambda _document, base: base,
        check_aggregate=lambda _document, base: base,
        groups=("web",),
    )
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        for key, value, decided in (
            (f"{ALL}/worker/process", "stop", "stop"),
            (f"{GROUP}/worker/process", "freeze", "freeze"),
            (f"{OWN}/worker/process", "start", "start"),
        ):
            etcd.put(key, value)
            snapshot = recorder.wait_value(key, value.encode())
            desired, _ = resolve(snapshot, context)
            assert (desired.workers["process"].action, desired.workers["process"].decided_by) == (decided, key)


def test_the_killswitch_engages_and_its_deletion_is_observed(etcd: Cluster) -> None:
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        for scope in (ALL, GROUP, OWN):
            key = f"{scope}/killswitch"
            etcd.put(key, "on")
            recorder.wait(lambda key=key: key in recorder.kills[-1].entries)  # type: ignore[misc]
            etcd.delete(key)
            gone = recorder.wait(lambda key=key: _absent(recorder.kills[-1], key))  # type: ignore[misc]
            assert gone
    assert len({kill.history for kill in recorder.kills}) == 1


def _absent(seen: KillObservation, key: str) -> bool:
    return key in seen.covered and key not in seen.entries


def test_a_killswitch_is_told_in_the_thread_of_the_watch_while_the_store_is_busy(etcd: Cluster) -> None:
    """A listener that is slow with a snapshot must not hold up a kill."""

    class Slow(Recorder):
        def on_snapshot(self, snapshot: Snapshot) -> None:
            if f"{OWN}/worker/process" in snapshot.entries:
                self.wait(lambda: self.kills and self.kills[-1].entries, "a kill while the snapshot is being taken")
            super().on_snapshot(snapshot)

    with opened(etcd, recorder=Slow()) as (_, recorder):
        recorder.wait(connected(recorder))
        etcd.put(f"{OWN}/worker/process", "stop")
        etcd.put(f"{ALL}/killswitch", "on")
        recorder.wait_value(f"{OWN}/worker/process", b"stop")


def test_groups_change_at_run_time_without_losing_a_change(etcd: Cluster) -> None:
    with opened(etcd) as (store, recorder):
        recorder.wait(connected(recorder))
        etcd.put(f"{SERVER}/@group/db/worker/process", "freeze")
        store.set_groups(("db",), kill_groups=("web",))
        etcd.put(f"{OWN}/worker/process", "stop")
        snapshot = recorder.wait_value(f"{SERVER}/@group/db/worker/process", b"freeze")
        recorder.wait_value(f"{OWN}/worker/process", b"stop")
        assert snapshot.groups == ("db",)
        etcd.put(f"{GROUP}/worker/process", "stop")  # left: only its killswitch is of interest
        etcd.put(f"{GROUP}/killswitch", "on")
        recorder.wait(lambda: f"{GROUP}/killswitch" in recorder.kills[-1].entries)
        assert f"{GROUP}/worker/process" not in recorder.snapshots[-1].entries
        assert f"{GROUP}/killswitch" not in recorder.snapshots[-1].entries


def test_a_burst_of_a_thousand_changes_is_told_as_few_and_the_last_one_wins(etcd: Cluster) -> None:
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        before = len(recorder.snapshots)
        for _ in range(10):
            etcd.etcdctl("txn", stdin=f"\n{''.join(f'put {OWN}/worker/w{i} stop{chr(10)}' for i in range(100))}\n\n")
        etcd.put(f"{OWN}/worker/process", "last")
        recorder.wait_value(f"{OWN}/worker/process", b"last")
        assert len(recorder.snapshots) - before < 100


def test_a_refresh_tells_everything_again(etcd: Cluster) -> None:
    with opened(etcd) as (store, recorder):
        recorder.wait(connected(recorder))
        before = len(recorder.snapshots)
        store.request_refresh()
        recorder.wait(lambda: len(recorder.snapshots) > before)


def test_a_body_is_fetched_and_one_that_is_not_there_yet_is_told_twice(etcd: Cluster) -> None:
    here, later = json.dumps({"a": 1}), json.dumps({"b": 2})
    etcd.put(f"/hids/config/body/{sha256(here)}", here)
    with opened(etcd) as (store, recorder):
        recorder.wait(connected(recorder))
        store.fetch_bodies([sha256(here), sha256(later)])
        recorder.wait(lambda: recorder.bodies.get(sha256(here)) == here.encode())
        recorder.wait(lambda: sha256(later) in recorder.bodies)
        assert recorder.bodies[sha256(later)] is None
        etcd.put(f"/hids/config/body/{sha256(later)}", "something else")
        etcd.put(f"/hids/config/body/{sha256(later)}", later)
        recorder.wait(lambda: recorder.bodies.get(sha256(later)) == later.encode())


def test_what_is_no_key_and_what_is_too_large_is_reported_and_nothing_is_lost(etcd: Cluster) -> None:
    etcd.put(f"{OWN}/worker/process", "x" * 70_000)
    etcd.put(f"{OWN}/wroker/process", "stop")
    etcd.put(f"{ALL}/killswitch", "y" * 70_000)
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        assert "70000 bytes" in recorder.error(f"{OWN}/worker/process")
        assert recorder.snapshots[-1].entries[f"{OWN}/wroker/process"].value == b""
        assert "70000 bytes" in recorder.kills[-1].entries[f"{ALL}/killswitch"].error


def test_a_listing_of_large_values_is_read_in_small_pages(etcd: Cluster) -> None:
    for i in range(10):
        etcd.put(f"{OWN}/task/{i}", "z" * 1_000_000)
    etcd.put(f"{OWN}/worker/process", "stop")
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        assert recorder.value(f"{OWN}/worker/process") == b"stop"
        assert len(recorder.snapshots[-1].entries) == 11


def test_above_the_bound_what_matters_most_is_kept_and_the_rest_is_reported(
    etcd: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "MAX_KEYS", 20)
    for i in range(3):
        etcd.etcdctl("txn", stdin=f"\n{''.join(f'put {ALL}/task/{i}-{j} x{chr(10)}' for j in range(20))}\n\n")
    etcd.put(f"{ALL}/worker/process", "stop")
    with opened(etcd) as (_, recorder):
        recorder.wait(connected(recorder))
        snapshot = recorder.snapshots[-1]
        assert recorder.value(f"{ALL}/worker/process") == b"stop"
        assert len(snapshot.entries) == 20
        assert any("more than 20 keys" in problem.reason for problem in snapshot.problems)
        etcd.put(f"{ALL}/killswitch", "on")
        recorder.wait(lambda: recorder.kills[-1].entries)


def test_a_change_that_the_watch_has_lost_is_found_by_the_look_behind_it(etcd: Cluster) -> None:
    with opened(etcd, timing=QUICK._replace(reread=2.0)) as (store, recorder):
        recorder.wait(connected(recorder))
        session = store._session
        assert session is not None
        assert session._receiver is not None
        session._receiver._take = lambda _receiver, _news: None  # silent: nothing comes any more and nothing fails
        etcd.put(f"{OWN}/worker/process", "stop")
        recorder.wait_value(f"{OWN}/worker/process", b"stop")


def test_a_listener_that_raises_is_told_again(etcd: Cluster) -> None:
    class Raising(Recorder):
        raised = 0

        def on_killswitch(self, observation: KillObservation) -> None:
            if observation.entries and self.raised < 2:
                self.raised += 1
                raise RuntimeError("cannot kill")
            super().on_killswitch(observation)

    with opened(etcd, recorder=Raising()) as (_, recorder):
        recorder.wait(connected(recorder))
        etcd.put(f"{ALL}/killswitch", "on")
        recorder.wait(lambda: recorder.kills and recorder.kills[-1].entries)
        assert any(kind == "status" and "cannot kill" in what.error for kind, what in recorder.calls)
        recorder.wait(connected(recorder))


def test_sessions_are_announced_and_ended_once_each(etcd: Cluster) -> None:
    calls: list[str] = []

    def prepare(store: EtcdStore) -> None:
        store.on_session = lambda connection: calls.append(connection.endpoint)
        store.on_session_end = lambda: calls.append("end")

    with opened(etcd, prepare=prepare) as (store, recorder):
        recorder.wait(lambda: calls)
        store.request_refresh()
        recorder.wait(lambda: len(recorder.snapshots) > 1)
    assert calls == [etcd.endpoints[0], "end"]
