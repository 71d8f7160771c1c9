"""When a new version counts as having taken over."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.control.status import (
    WORKER_STATES,
    AgentStatus,
    ConfigStatus,
    KillswitchStatus,
    StatusReport,
    StoreStatus,
    WorkerStatus,
)
from garrison.supervisor.control.takeover import RUNS, lacks
from garrison.supervisor.refused import NOTE, refused_upgrade

workers = st.lists(
    st.builds(
        WorkerStatus,
        name=st.sampled_from(["files", "network", "process"]),
        desired=st.sampled_from(["start", "stop", "freeze"]),
        state=st.sampled_from(WORKER_STATES),
        last_error=st.none() | st.just("broken"),
        held=st.sampled_from(["", "the host is short of CPU"]),
        config=st.builds(ConfigStatus, status=st.sampled_from(["applied", "pending", "rejected"])),
    ),
    unique_by=lambda worker: worker.name,
)
reports = st.builds(
    StatusReport,
    host=st.just("web1"),
    agent=st.builds(
        AgentStatus,
        killswitch=st.builds(KillswitchStatus, engaged=st.booleans()),
        store=st.builds(StoreStatus, connected=st.booleans()),
    ),
    workers=workers,
)


def report(*found: WorkerStatus, killed: bool = False, connected: bool = True) -> StatusReport:
    agent = AgentStatus(
        killswitch=KillswitchStatus(engaged=killed), store=StoreStatus(backend="etcd", connected=connected)
    )
    return StatusReport(host="web1", agent=agent, workers=list(found))


def worker(state: str, name: str = "process", **more: object) -> WorkerStatus:
    return WorkerStatus(name=name, state=state, **more)  # type: ignore[arg-type]


@given(reports)
def test_the_same_state_as_before_lacks_nothing(before: StatusReport) -> None:
    # A worker that ran although it was to stop may be on its way there.
    assert lacks(before, deepcopy(before)) == []


@given(reports, reports)
def test_under_the_killswitch_no_worker_is_missed(before: StatusReport, now: StatusReport) -> None:
    now.agent.killswitch.engaged = True
    assert all("worker" not in text for text in lacks(before, now))


@given(reports, reports)
def test_what_was_down_before_is_not_asked_for(before: StatusReport, now: StatusReport) -> None:
    before.agent.store.connected = False
    before.workers = [one for one in before.workers if one.state not in RUNS]
    assert lacks(before, now) == []


@given(reports, st.sampled_from(sorted(set(WORKER_STATES) - RUNS)))
def test_each_worker_that_ran_and_is_wanted_has_to_run(before: StatusReport, state: str) -> None:
    now = deepcopy(before)
    now.agent.killswitch.engaged = False
    wanted = set()
    for one in now.workers:
        if one.state in RUNS and one.desired != "stop" and not one.held:
            wanted.add(f"worker {one.name} is {state}" + (": broken" if one.last_error else ""))
        one.state = state
    assert set(lacks(before, now)) == wanted


def test_a_worker_that_the_new_version_does_not_know_is_missed() -> None:
    assert lacks(report(worker("running")), report()) == ["worker process is not known any more"]


def test_a_worker_whose_module_fails_is_missed_although_its_process_runs() -> None:
    now = report(worker("running", last_error="failed and starts again in 15 s: RuntimeError"))
    assert lacks(report(worker("running")), now) == ["worker process: failed and starts again in 15 s: RuntimeError"]
    assert lacks(report(worker("running", last_error="of old")), now) == []


def test_a_configuration_that_only_the_new_version_rejects_is_missed() -> None:
    rejected = worker("running", config=ConfigStatus(status="rejected", error="depth is no number"))
    assert lacks(report(worker("running")), report(rejected)) == [
        "worker process rejects its configuration: depth is no number"
    ]
    assert lacks(report(rejected), report(rejected)) == []


def test_the_store_has_to_be_connected_where_it_was() -> None:
    away = report(connected=False)
    assert lacks(report(), away) == ["the etcd store is not connected, as it was before"]
    assert lacks(report(connected=False), away) == []


def test_without_a_status_of_before_every_wanted_worker_has_to_run() -> None:
    now = report(
        worker("latched", last_error="oom"), worker("stopped", "files", desired="stop"), worker("running", "x")
    )
    assert lacks(None, now) == ["worker process is latched: oom"]


def test_an_upgrade_that_was_taken_back_is_told_with_version_and_reason(tmp_path: Path) -> None:
    assert refused_upgrade(str(tmp_path)) == ""
    (tmp_path / NOTE).write_text("0.9.0\nworker files is failed:\n no such module\n")
    told = refused_upgrade(str(tmp_path))
    assert told.startswith("the upgrade to 0.9.0 was taken back")
    assert "worker files is failed: no such module;" in told


def test_a_note_that_was_cut_off_or_is_no_text_is_told_as_well(tmp_path: Path) -> None:
    for content in (b"", b"\xff\xfe\n\x00", b"0.9.0", b"x" * 100_000):
        (tmp_path / NOTE).write_bytes(content)
        assert "was taken back" in refused_upgrade(str(tmp_path))
    (tmp_path / NOTE).unlink()
    (tmp_path / NOTE).mkdir()
    assert "cannot be read" in refused_upgrade(str(tmp_path))
