"""When a host's documents are written: never for nothing, soon for an operator, spread for a fleet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from garrison.supervisor.control.status import ConfigStatus, KillswitchStatus
from garrison.supervisor.presence.document import BreakerFacts, HostStatus, Registration, WorkerFacts
from garrison.supervisor.presence.publisher import (
    FLEET_GAP_SECONDS,
    FLEET_SPREAD_SECONDS,
    ITSELF_GAP_SECONDS,
    ITSELF_SPREAD_SECONDS,
    OPERATOR_GAP_SECONDS,
    SOON_SECONDS,
    UNSETTLED_SECONDS,
    Facts,
    Publisher,
    causes,
)

PREFIX = "/hids"
HOST_KEY = "/hids/server/config/web1/worker/process"
GROUP_KEY = "/hids/server/config/@group/web/worker/process"
ALL_KEY = "/hids/server/config/@all/worker/process"
LONG_AGO = -1e6


def facts(worker: dict[str, object] | None = None, **status: object) -> Facts:
    given = {"desired": "start", "desired_by": "default", "state": "running", **(worker or {})}
    return Facts(
        Registration(instance="i1"),
        HostStatus(host="web1", workers=(WorkerFacts(name="process", **given),), **status),  # type: ignore[arg-type]
    )


BASE = facts()


def stop(by: str) -> Facts:
    return facts({"desired": "stop", "desired_by": by, "state": "stopped"})


def after(new: Facts, old: Facts = BASE, *, written: float = LONG_AGO, host: str = "web1") -> float:
    """Return when a change that is seen at 0 is written."""
    publisher = Publisher(host, PREFIX)
    publisher.offer(old, written)
    publisher.wrote(old, written)
    publisher.offer(new, 0.0)
    return publisher.due()


def test_nothing_is_written_while_nothing_changes() -> None:
    assert after(BASE) == math.inf
    assert Publisher("web1", PREFIX).due() == math.inf


def test_the_first_status_is_written_soon() -> None:
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, 0.0)
    assert publisher.due() == SOON_SECONDS


def test_who_caused_a_change() -> None:
    local = facts({"desired": "stop", "desired_by": "local", "state": "stopped"})
    for old, new, cause in (
        (BASE, stop(HOST_KEY), "operator"),
        (stop(HOST_KEY), BASE, "operator"),
        (stop(ALL_KEY), stop(HOST_KEY), "operator"),
        (stop(HOST_KEY), stop(ALL_KEY), "operator"),
        (BASE, local, "operator"),
        (BASE, stop(ALL_KEY), "fleet"),
        (stop(ALL_KEY), BASE, "fleet"),
        (stop(GROUP_KEY), stop(ALL_KEY), "fleet"),
        (BASE, facts({"state": "tripped"}), "itself"),
        (BASE, facts(problems=("the disk is full",)), "itself"),
    ):
        found = causes(old, new, PREFIX)
        assert cause in found, (old, new)
        assert not ({"operator", "fleet"} - {cause}) & found


def test_a_configuration_is_the_fleets_unless_a_key_of_the_host_has_to_do_with_it() -> None:
    own, shared = ("/hids/agent/config/web1/plugin/process/rules",), ("/hids/agent/config/@all/plugin/process/rules",)

    def configured(digest: str, *by: str) -> Facts:
        return facts({"config": ConfigStatus(hash=digest), "config_by": by})

    assert "fleet" in causes(configured("a", *shared), configured("b", *shared), PREFIX)
    assert "fleet" in causes(configured("a"), configured("b", *shared), PREFIX)
    assert "operator" in causes(configured("a", *own), configured("b", *own), PREFIX)
    assert "operator" in causes(configured("a", *own), configured("b"), PREFIX)


def test_a_revision_that_moves_alone_is_no_decision() -> None:
    moved = facts({"config": ConfigStatus(revision=9)})
    assert causes(BASE, moved, PREFIX) == {"itself"}


def test_a_killswitch_is_the_fleets_when_its_scope_is() -> None:
    def killed(scope: str) -> Facts:
        return facts(killswitch=KillswitchStatus(engaged=True, scopes=[scope]))

    assert "fleet" in causes(BASE, killed("@all"), PREFIX)
    assert "fleet" in causes(killed("@group/web"), BASE, PREFIX)
    for scope in ("web1", "local", "file"):
        assert "operator" in causes(BASE, killed(scope), PREFIX)


def test_what_an_operator_did_to_this_host_is_written_soon() -> None:
    assert after(stop(HOST_KEY)) == SOON_SECONDS


def test_what_a_shared_key_did_is_spread_over_a_minute() -> None:
    times = [after(stop(ALL_KEY), host=f"web{number}") for number in range(2000)]
    assert min(times) >= SOON_SECONDS
    assert max(times) <= SOON_SECONDS + FLEET_SPREAD_SECONDS
    busiest = max(sum(second <= at < second + 1 for at in times) for second in range(62))
    assert busiest <= 4 * len(times) / FLEET_SPREAD_SECONDS


def test_what_happens_by_itself_comes_soon_after_a_quiet_time_and_rarely_after_that() -> None:
    tripped = facts({"state": "tripped"})
    assert after(tripped) <= SOON_SECONDS + ITSELF_SPREAD_SECONDS
    assert after(tripped, written=-1.0) == ITSELF_GAP_SECONDS - 1.0


def test_whatever_is_due_first_takes_everything_along() -> None:
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, -1.0)
    publisher.wrote(BASE, -1.0)
    publisher.offer(facts({"state": "tripped"}), 0.0)
    assert publisher.due() > 200
    publisher.offer(stop(HOST_KEY), 20.0)
    assert publisher.due() == 20.0 + SOON_SECONDS


def test_a_change_that_is_taken_back_in_time_is_not_written() -> None:
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, LONG_AGO)
    publisher.wrote(BASE, LONG_AGO)
    publisher.offer(stop(ALL_KEY), 0.0)
    publisher.offer(BASE, 1.0)
    assert publisher.due() == math.inf


def test_a_write_waits_for_workers_that_are_about_to_stop_but_not_for_ever() -> None:
    stopping = facts({"desired": "stop", "desired_by": HOST_KEY, "state": "stopping"})
    assert after(stopping) == SOON_SECONDS + UNSETTLED_SECONDS
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, LONG_AGO)
    publisher.wrote(BASE, LONG_AGO)
    publisher.offer(stopping, 0.0)
    publisher.offer(stop(HOST_KEY), 2.0)
    assert publisher.due() == SOON_SECONDS


def test_what_went_with_the_lease_is_written_soon() -> None:
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, 0.0)
    publisher.wrote(BASE, 0.0)
    publisher.forget(5.0)
    assert publisher.due() == 5.0 + SOON_SECONDS


documents = st.sampled_from(
    [
        BASE,
        stop(HOST_KEY),
        stop(GROUP_KEY),
        stop(ALL_KEY),
        facts({"state": "tripped"}),
        facts({"state": "starting"}),
        facts(problems=("full",)),
        facts(killswitch=KillswitchStatus(engaged=True, scopes=["@all"])),
    ]
)


def written_at(changes: list[tuple[float, Facts]], until: float) -> list[float]:
    """Return when a publisher writes, given what is offered when."""
    publisher = Publisher("web1", PREFIX)
    publisher.offer(BASE, 0.0)
    publisher.wrote(BASE, 0.0)
    writes = []
    for at, document in [*changes, (until, None)]:
        while (due := publisher.due()) < at:
            assert publisher.wanted is not None
            publisher.wrote(publisher.wanted, due)
            assert publisher.written == publisher.wanted
            assert publisher.due() == math.inf
            writes.append(due)
        if document is not None:
            publisher.offer(document, at)
    return writes


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.01, 100), documents), max_size=60))
def test_whatever_happens_every_difference_is_written_and_writes_are_bounded(steps: list[tuple[float, Facts]]) -> None:
    now, changes = 0.0, []
    for passed, document in steps:
        now += passed
        changes.append((now, document))
    end = now + ITSELF_GAP_SECONDS + 60
    writes = written_at(changes, end)
    assert all(later - earlier >= OPERATOR_GAP_SECONDS - 1e-6 for earlier, later in itertools.pairwise(writes))
    if changes and changes[-1][1] != BASE:
        assert writes


def flapping(old: Facts, new: Facts, every: float, seconds: float) -> list[tuple[float, Facts]]:
    count = int(seconds / every)
    return [(every * (number + 1), new if number % 2 == 0 else old) for number in range(count)]


def rate(changes: Callable[[], list[tuple[float, Facts]]], seconds: float) -> float:
    return len(written_at(changes(), seconds)) / seconds


def test_flapping_is_bounded() -> None:
    hour = 3600.0
    trips = [
        (0.7 * number, facts({"state": "running" if number % 2 else "tripped", "breaker": BreakerFacts(trips=number)}))
        for number in range(1, int(hour / 0.7))
    ]
    worker = rate(lambda: trips, hour)
    assert 0 < worker <= 1 / ITSELF_GAP_SECONDS
    fleet = rate(lambda: flapping(stop(GROUP_KEY), stop(ALL_KEY), 0.7, hour), hour)
    assert fleet <= 1 / FLEET_GAP_SECONDS
    operator = rate(lambda: flapping(BASE, stop(HOST_KEY), 3.1, hour), hour)
    assert 0 < operator <= 1 / OPERATOR_GAP_SECONDS


def test_the_time_of_writing_is_no_difference() -> None:
    assert msgspec.structs.replace(BASE.status, written="") == BASE.status
