"""What `garrison fleet hosts` makes of one host's documents."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.etcd.hosts import MARKS, FleetKeys, gone, judge, split_scope
from garrison.supervisor.control.status import ConfigStatus, KillswitchStatus
from garrison.supervisor.presence.document import BreakerFacts, HostStatus, Registration, WorkerFacts

REGISTERED = Registration(version="1", machine_id="m1", groups=("web",))


def status(*workers: WorkerFacts, killed: tuple[str, ...] = (), groups: tuple[str, ...] = ("web",)) -> HostStatus:
    switch = KillswitchStatus(engaged=bool(killed), scopes=list(killed))
    return HostStatus(host="web1", killswitch=switch, groups=groups, workers=workers)


def keys(**values: str) -> FleetKeys:
    found = FleetKeys()
    for rest, value in values.items():
        found.take(rest, value.encode())
    return found


RUNNING = WorkerFacts(name="process", desired="start", state="running")


def test_host_in_order_is_online_and_nothing_else() -> None:
    host = judge("web1", REGISTERED, status(RUNNING), FleetKeys())
    assert host.marks == ("online",)
    assert not host.notes


def test_stop_that_the_host_does_not_show_yet_is_unconfirmed() -> None:
    wanted = keys(**{"@all/worker/process": "stop"})
    host = judge("web1", REGISTERED, status(RUNNING), wanted)
    assert host.state == "unconfirmed"
    assert host.workers[0].wanted == "stop"


def test_more_specific_key_decides() -> None:
    wanted = keys(**{"@all/worker/process": "stop", "@group/web/worker/process": "start"})
    assert judge("web1", REGISTERED, status(RUNNING), wanted).marks == ("online",)
    wanted.take("web1/worker/process", b'{"action": "freeze"}')
    assert judge("web1", REGISTERED, status(RUNNING), wanted).state == "unconfirmed"


def test_key_of_another_group_or_host_does_not_matter() -> None:
    wanted = keys(**{"@group/db/worker/process": "stop", "web10/worker/process": "stop", "@group/db/killswitch": "on"})
    assert judge("web1", REGISTERED, status(RUNNING), wanted).marks == ("online",)


def test_local_stop_is_an_answer_to_a_start() -> None:
    stopped = WorkerFacts(name="process", desired="stop", desired_by="local", state="stopped")
    assert judge("web1", REGISTERED, status(stopped), keys(**{"@all/worker/process": "start"})).marks == ("online",)


def test_value_that_cannot_be_read_wants_nothing() -> None:
    assert judge("web1", REGISTERED, status(RUNNING), keys(**{"@all/worker/process": "strat"})).marks == ("online",)


def test_killswitch_is_unconfirmed_until_the_status_names_its_scope() -> None:
    wanted = keys(**{"@all/killswitch": "on"})
    assert judge("web1", REGISTERED, status(RUNNING), wanted).state == "unconfirmed"
    dead = WorkerFacts(name="process", state="killed")
    host = judge("web1", REGISTERED, status(dead, killed=("@all",)), wanted)
    assert host.marks == ("killed", "online")
    host = judge("web1", REGISTERED, status(dead, killed=("file",)), wanted)
    assert host.marks == ("killed", "unconfirmed", "online")


def test_unreadable_killswitch_counts_as_engaged() -> None:
    assert judge("web1", REGISTERED, status(RUNNING), keys(**{"@all/killswitch": "offf"})).state == "unconfirmed"


def test_worker_that_is_not_as_the_host_wants_it_differs() -> None:
    latched = WorkerFacts(name="process", state="latched", breaker=BreakerFacts(state="latched", cause="cpu"))
    assert judge("web1", REGISTERED, status(latched), FleetKeys()).marks == ("differs", "problem", "online")


def test_rejected_configuration_is_a_problem() -> None:
    rejected = WorkerFacts(
        name="process", state="running", config=ConfigStatus(status="rejected", error="no such field")
    )
    host = judge("web1", REGISTERED, status(rejected), FleetKeys())
    assert host.marks == ("problem", "online")
    assert "no such field" in host.notes[0]


def test_no_status_no_lease_garbage_and_twins_are_said() -> None:
    assert judge("web1", REGISTERED, None, FleetKeys()).state == "unconfirmed"
    assert judge("web1", REGISTERED, status(RUNNING), FleetKeys(), leased=False).state == "gone"
    assert judge("web1", None, status(RUNNING), FleetKeys()).state == "problem"
    assert judge("web1", REGISTERED, status(RUNNING), FleetKeys(), twin="web0").state == "duplicate"
    assert gone("web1", "why").state == "gone"


@given(st.text(alphabet="@al/gropweb.1-", max_size=30), st.binary(max_size=20))
def test_any_key_and_value_is_taken(rest: str, value: bytes) -> None:
    found = FleetKeys()
    found.take(rest, value)
    scope, _ = split_scope(rest)
    assert not scope.startswith("@") or scope == "@all" or scope.startswith("@group/")
    assert judge("web1", REGISTERED, status(RUNNING), found).state in MARKS
