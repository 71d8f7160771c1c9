"""What becomes of the breakers across a restart of master or machine."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Hold
from garrison.supervisor import breaker as circuit
from garrison.supervisor import statefile
from garrison.supervisor.breaker import Breaker, Policy, Record
from garrison.supervisor.carrying import Carried
from garrison.supervisor.linux import boot_id
from garrison.supervisor.remembering import Remembering
from garrison.supervisor.state import BREAKERS_FILE, BreakersState

POLICY = Policy()
HOST, WORKER = "web1", "process"


def tripped(times: int, at: float) -> Breaker:
    breaker = Breaker()
    for _ in range(times):
        breaker = circuit.breached(breaker, "cpu", at, POLICY, HOST, WORKER)
    return breaker


def carried(breaker: Breaker, saved_at: float, now: float, boot: str = "a", saved_boot: str = "a") -> Breaker:
    state = BreakersState(boot=saved_boot, clock=saved_at, records={WORKER: Record(breaker=breaker)})
    record = Carried(state, lost=False, boot=boot, now=now, policy=POLICY).of(WORKER)
    assert record is not None
    return record.breaker


def test_under_the_same_boot_the_wait_goes_on() -> None:
    breaker = tripped(3, 1000.0)
    assert carried(breaker, 1000.0, 1050.0).retry_at == breaker.retry_at


def test_after_a_boot_only_the_time_since_then_counts() -> None:
    breaker = tripped(3, 1000.0)
    wait = breaker.retry_at - 1000.0
    after = carried(breaker, 1000.0, 20.0, boot="b")
    assert circuit.may_start_in(after, 20.0) == pytest.approx(wait - 20.0)


def test_where_nobody_knows_the_boot_the_wait_begins_again() -> None:
    breaker = tripped(3, 1000.0)
    wait = breaker.retry_at - 1000.0
    assert circuit.may_start_in(carried(breaker, 1000.0, 9000.0, boot="", saved_boot=""), 9000.0) == pytest.approx(wait)


@given(st.integers(1, 4), st.floats(0, 1e7), st.floats(0, 1e7), st.sampled_from(["a", "b", ""]))
def test_no_restart_shortens_a_wait_by_more_than_has_passed_for_sure(
    trips: int, saved_at: float, now: float, boot: str
) -> None:
    breaker = tripped(trips, saved_at)
    left = breaker.retry_at - saved_at
    wait = circuit.may_start_in(carried(breaker, saved_at, now, boot=boot), now)
    assert wait is not None
    passed = {"a": max(0.0, now - saved_at), "b": now, "": 0.0}[boot]
    assert wait >= left - passed - 1e-3
    assert wait <= POLICY.cooldown_cap


@given(st.floats(0, 1e7), st.floats(0, 1e7), st.sampled_from(["a", "b", ""]))
def test_latched_stays_latched(saved_at: float, now: float, boot: str) -> None:
    assert carried(tripped(5, saved_at), saved_at, now, boot=boot).phase == "latched"


def test_a_probation_and_a_throttle_do_not_go_on_and_are_not_forgiven() -> None:
    probation = circuit.started(tripped(1, 0.0), 40.0, POLICY)
    assert carried(probation, 50.0, 60.0).phase == "open"
    throttled = circuit.throttled(Breaker(), "cpu", 2.5, 0.0, POLICY)
    after = carried(throttled, 10.0, 20.0)
    assert after.phase == "closed"
    assert not circuit.may_throttle(after, 239.0)
    assert circuit.may_throttle(after, 240.0)


def test_a_worker_that_nothing_is_known_of_has_a_closed_breaker_unless_the_file_was_lost() -> None:
    assert Carried(None, lost=False, boot="a", now=0.0, policy=POLICY).of(WORKER) is None
    record = Carried(None, lost=True, boot="a", now=100.0, policy=POLICY).of(WORKER)
    assert record is not None
    assert circuit.may_start_in(record.breaker, 100.0) == 0
    ready = circuit.started(record.breaker, 101.0, POLICY)
    assert ready.phase == "probation"
    assert circuit.breached(ready, "cpu", 102.0, POLICY, HOST, WORKER).phase == "latched"


def test_a_worker_whose_breaker_was_lost_is_forgiven_by_quiet_hours() -> None:
    ready = circuit.started(circuit.suspect(0.0, POLICY), 1.0, POLICY)
    settled = circuit.settled(ready, 4 * 3600.0 + 181.0, POLICY)
    assert (settled.phase, settled.level) == ("closed", 0)


def remember(folder: Path) -> Remembering:
    return Remembering(str(folder), HOST, lambda _: None)


def test_a_torn_file_is_reported_and_puts_every_worker_on_probation(tmp_path: Path) -> None:
    (tmp_path / BREAKERS_FILE).write_text('{"format":1,"sha')
    remembering = remember(tmp_path)
    assert "probation" in remembering.errors["breakers"]
    record = remembering.breakers.of("any")
    assert record is not None
    assert record.breaker.phase == "open"


def test_what_was_written_is_read_and_undefined_workers_are_forgotten(tmp_path: Path) -> None:
    record = Record(
        breaker=tripped(5, 10.0), configured="x", reset_token="t", held={"m": Hold(phase="latched", trips=2)}
    )
    remembering = remember(tmp_path)
    remembering.writer.start()
    remembering.save_breakers({WORKER: record, "other": Record()}, [WORKER, "other"])
    remembering.writer.close(10)
    again = remember(tmp_path)
    assert again.errors["breakers"] == ""
    assert again.breakers.of(WORKER) == record
    again.writer.start()
    again.save_breakers({}, ["other"])
    again.writer.close(10)
    assert set(remember(tmp_path).breakers.all()) == {"other"}
    assert statefile.read(str(tmp_path / BREAKERS_FILE), BreakersState).boot == boot_id()


def test_a_record_survives_being_written_and_read() -> None:
    record = Record(breaker=tripped(2, 5.0), configured="x", reset_token="", held={"m": Hold()})
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
