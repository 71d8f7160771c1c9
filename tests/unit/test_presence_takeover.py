"""What is done about a registration that is there: the table, and that clones never fight for ever."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.presence.document import Registration
from garrison.supervisor.presence.takeover import WAIT_MARGIN_SECONDS, Decision, Existing, decide

HOST = "web1"
LEASE, OTHER_LEASE = 7, 8
ME = Registration(machine_id="m1", boot_id="b1", instance="i1", pid=412, version="1", ip_addresses=("10.0.0.1",))


def other(**changes: object) -> Registration:
    return msgspec.structs.replace(ME, instance="i2", **changes)


def found(document: Registration | None, lease: int = OTHER_LEASE, seconds: float = 30.0) -> Existing:
    return Existing(document, lease, seconds, 100)


def act(existing: Existing | None, *, displaced: bool = False, waited: bool = False, me: Registration = ME) -> Decision:
    return decide(HOST, me, LEASE, existing, displaced=displaced, waited=waited)


def test_an_absent_key_is_created() -> None:
    assert act(None).action == "create"
    assert act(None, displaced=True).action == "create"


def test_what_this_process_wrote_is_kept() -> None:
    assert act(found(ME, LEASE)).action == "keep"


def test_what_this_process_wrote_on_a_lease_that_was_replaced_is_written_again() -> None:
    assert act(found(ME, OTHER_LEASE)).action == "take over"


def test_a_restart_in_the_same_boot_takes_over() -> None:
    assert act(found(other())).action == "take over"
    assert act(found(other(pid=999))).action == "take over"


def test_a_key_on_our_own_lease_is_ours_where_the_machine_has_no_id() -> None:
    nameless = msgspec.structs.replace(ME, machine_id="")
    assert act(found(other(machine_id=""), LEASE), me=nameless).action == "take over"
    assert act(found(other(machine_id=""), OTHER_LEASE), me=nameless).action == "duplicate"


def test_a_lease_that_is_gone_holds_nothing_on_the_same_machine() -> None:
    assert act(found(other(boot_id="b0"), seconds=0)).action == "take over"
    assert act(found(other(boot_id="b0"), lease=0, seconds=0)).action == "take over"


def test_another_boot_of_this_machine_is_waited_for_and_then_a_duplicate() -> None:
    first = act(found(other(boot_id="b0"), seconds=17))
    assert (first.action, first.seconds) == ("wait", 17 + WAIT_MARGIN_SECONDS)
    then = act(found(other(boot_id="b0"), seconds=55), waited=True)
    assert then.action == "duplicate"
    assert "machine-id" in then.text


def test_the_process_id_alone_proves_nothing() -> None:
    assert act(found(other(boot_id="b0", pid=ME.pid))).action == "wait"


def test_boot_ids_that_are_not_known_are_not_equal() -> None:
    nameless = msgspec.structs.replace(ME, boot_id="")
    assert act(found(other(boot_id="")), me=nameless).action == "wait"


def test_another_machine_is_a_duplicate_whatever_its_lease() -> None:
    for existing in (found(other(machine_id="m2")), found(other(machine_id="m2"), lease=0, seconds=0)):
        decision = act(existing)
        assert decision.action == "duplicate"
        assert decision.text.startswith("duplicate host web1: ")
    assert "delete the key" in decision.text


def test_a_value_that_cannot_be_read_is_a_duplicate() -> None:
    assert "cannot be read" in act(found(None)).text


def test_a_process_that_was_displaced_does_not_take_the_key_back() -> None:
    assert act(found(other()), displaced=True).action == "duplicate"
    assert act(found(other(), LEASE), displaced=True).action == "duplicate"
    assert act(found(other(), seconds=0), displaced=True).action == "take over"


@given(
    st.builds(
        Existing,
        st.none()
        | st.builds(
            Registration,
            machine_id=st.sampled_from(["", "m1", "m2"]),
            boot_id=st.sampled_from(["", "b1", "b2"]),
            instance=st.sampled_from(["", "i1", "i2"]),
            ip_addresses=st.just(("10.0.0.9\n\x1b[31m",)),
        ),
        st.sampled_from([0, LEASE, OTHER_LEASE]),
        st.sampled_from([-1.0, 0.0, 30.0]),
        st.just(100),
    ),
    st.booleans(),
    st.booleans(),
)
def test_only_this_machine_or_this_lease_ever_takes_over(existing: Existing, displaced: bool, waited: bool) -> None:
    decision = act(existing, displaced=displaced, waited=waited)
    document = existing.document
    mine = document is not None and document.instance == ME.instance
    if decision.action == "take over":
        assert mine or existing.lease_id == LEASE or (document is not None and document.machine_id == ME.machine_id)
        assert mine or not displaced or existing.lease_seconds <= 0
    assert (decision.action == "wait") <= (decision.seconds > 0 and not waited)
    assert decision.text.isprintable()
    assert (decision.action in ("wait", "duplicate")) == bool(decision.text)


class Clone:
    """A process in the simulation below: what `Registrar` keeps of earlier looks."""

    def __init__(self, number: int, machine: str, boot: str) -> None:
        self.me = Registration(machine_id=machine, boot_id=boot, instance=f"i{number}")
        self.lease = 100 + number
        self.held = self.displaced = self.waited = False

    def look(self, key: tuple[Registration, int] | None) -> bool:
        """Look at the key; True: it is taken."""
        existing = None if key is None else Existing(key[0], key[1], 30.0, 1)
        if self.held and key is not None and key[0].instance != self.me.instance:
            self.displaced, self.held = True, False
        decision = decide(HOST, self.me, self.lease, existing, displaced=self.displaced, waited=self.waited)
        self.waited = self.waited or decision.action == "wait"
        if decision.action in ("create", "take over"):
            self.held, self.displaced = True, False
            return True
        return False


@given(
    st.lists(st.tuples(st.sampled_from(["m1", "m2"]), st.sampled_from(["b1", "b2"])), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), max_size=100),
)
def test_living_clones_never_take_over_from_each_other_for_ever(
    machines: list[tuple[str, str]], looks: list[int]
) -> None:
    clones = [Clone(number, *machine) for number, machine in enumerate(machines)]
    key: tuple[Registration, int] | None = None
    taken = 0
    for number in looks:
        clone = clones[number % len(clones)]
        if clone.look(key):
            taken += 1
            key = (clone.me, clone.lease)
    # Each process takes the key once at most: when it starts.
    assert taken <= len(clones)


@pytest.mark.parametrize("lease", [LEASE, OTHER_LEASE])
def test_the_text_of_a_duplicate_says_who_and_what_to_do(lease: int) -> None:
    text = act(
        found(other(machine_id="m2", ip_addresses=("10.0.0.2",), started="2026-01-01"), lease), displaced=True
    ).text
    assert text.startswith("duplicate host web1: ")
    assert "10.0.0.2" in text
    assert "agent.hostname" in text
