from __future__ import annotations

import threading
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from garrison.supervisor import killswitch as ks
from garrison.supervisor.killswitch import FileReading, KillState, KillSwitch, PendingRelease
from garrison.supervisor.stores.base import Entry, KillObservation

ALL = "/hids/server/config/@all/killswitch"
OWN = "/hids/server/config/h1/killswitch"
GROUP = "/hids/server/config/@group/web/killswitch"
KEYS = (ALL, OWN, GROUP)


def seen(
    values: dict[str, bytes] | None = None,
    *,
    revision: int = 1,
    history: str = "a",
    covered: tuple[str, ...] = KEYS,
    errors: dict[str, str] | None = None,
) -> KillObservation:
    entries = {key: Entry(value, revision) for key, value in (values or {}).items()}
    entries |= {key: Entry(b"", revision, error) for key, error in (errors or {}).items()}
    return KillObservation(entries, frozenset(covered), revision, history)


def after(*observations: KillObservation, state: KillState | None = None) -> KillState:
    state = state or KillState()
    for observation in observations:
        state = ks.observe_store(state, observation)
    return state


def switch(**options: object) -> tuple[KillSwitch, list[str]]:
    calls: list[str] = []
    options = {"on_engage": lambda: calls.append("kill"), "on_change": lambda: calls.append("change")} | options
    return KillSwitch("h1", **options), calls  # type: ignore[arg-type]


# -- policy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_any_scope_engages(key: str) -> None:
    assert after(seen({key: b"on"})).engaged


def test_off_in_one_scope_does_not_outvote_on_in_another() -> None:
    assert after(seen({OWN: b"off", ALL: b"on"})).engaged


def test_off_releases() -> None:
    assert not after(seen({ALL: b"on"}), seen({ALL: b"off"}, revision=2)).engaged


def test_a_delete_that_was_seen_releases() -> None:
    assert not after(seen({ALL: b"on"}), seen(revision=2)).engaged


@pytest.mark.parametrize("value", [b"", b"garbage", b"\xff", b'{"engaged": 1}', b"x" * 70_000])
def test_what_cannot_be_read_engages_and_says_so(value: bytes) -> None:
    state = after(seen({ALL: value}))
    assert state.engaged
    assert state.causes()[0].reason.startswith(f"unreadable value of {ALL}: ")


def test_an_entry_with_an_error_engages() -> None:
    assert after(seen(errors={OWN: "it is a FIFO"})).causes()[0].reason.endswith("it is a FIFO")


def test_a_key_that_was_not_looked_at_stays_as_it_was() -> None:
    assert after(seen({ALL: b"on"}), seen(covered=(OWN, GROUP), revision=2)).engaged


def test_absence_in_another_history_releases_nothing_and_is_shown_as_orphaned() -> None:
    state = after(seen({ALL: b"on"}), seen(revision=50, history="b"), seen(revision=51, history="b"))
    assert [cause.where for cause in state.causes()] == ["orphaned"]


def test_absence_after_a_restart_releases_nothing() -> None:
    state = ks.restored(after(seen({ALL: b"on"})))
    assert [cause.where for cause in state.causes()] == ["remembered"]
    state = after(seen(revision=5), state=state)
    assert [cause.where for cause in state.causes()] == ["orphaned"]


def test_a_key_seen_again_after_a_restart_can_be_deleted() -> None:
    state = ks.restored(after(seen({ALL: b"on"})))
    assert not after(seen({ALL: b"on"}, revision=2), seen(revision=3), state=state).engaged


def test_an_older_look_within_one_history_neither_releases_nor_orphans() -> None:
    state = after(seen({ALL: b"on"}, revision=9))
    assert after(seen({ALL: b"off"}, revision=3), state=state).engaged
    assert [c.where for c in after(seen(revision=3), state=state).causes()] == ["present"]


def test_off_in_a_new_history_releases_whatever_its_revision() -> None:
    assert not after(seen({ALL: b"on"}, revision=9), seen({ALL: b"off"}, revision=3, history="b")).engaged


def test_off_releases_an_orphaned_key() -> None:
    state = after(seen({ALL: b"on"}), seen(history="b"), seen({ALL: b"off"}, history="b", revision=2))
    assert not state.engaged


def test_garrison_release_clears_garrison_kill_and_orphans_but_no_key_that_is_there() -> None:
    state = ks.engage_locally(after(seen({ALL: b"on", OWN: b"on"})), "because", "ada")
    state = after(seen({OWN: b"on"}, revision=2, history="b"), state=state)
    left = ks.release_locally(state)
    assert [cause.source for cause in left.causes()] == [OWN]


def test_garrison_release_keeps_what_is_only_remembered() -> None:
    assert ks.release_locally(ks.restored(after(seen({ALL: b"on"})))).engaged


def test_the_file_engages_and_its_absence_releases() -> None:
    state = ks.observe_file(KillState(), FileReading(engaged=True, reason="on"))
    assert state.engaged
    assert not ks.observe_file(state, FileReading(engaged=False)).engaged


def test_a_release_of_a_shared_scope_is_spread_and_any_other_is_immediate() -> None:
    delays = {ks.release_delay(["@all"], f"h{number}", 60.0) for number in range(200)}
    assert len(delays) > 190
    assert all(0 <= delay < 60 for delay in delays)
    assert max(delays) > 50
    assert ks.release_delay(["@group/web"], "h1", 60.0) == ks.release_delay(["@all"], "h1", 60.0)
    assert ks.release_delay(["h1", "file", "local"], "h1", 60.0) == 0


def test_groups_with_a_remembered_killswitch_are_named_so_that_their_off_is_seen() -> None:
    assert ks.kill_groups(after(seen({GROUP: b"on", ALL: b"on"}))) == ("web",)


def test_the_memory_of_engaged_keys_is_bounded() -> None:
    many = {f"/hids/server/config/@group/g{number}/killswitch": b"on" for number in range(1000)}
    state = after(seen(many, covered=tuple(many)))
    assert len(state.store) == ks.MAX_CAUSES


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(KEYS), st.sampled_from([b"on", b"off", b"?"]) | st.binary(max_size=9)),
            st.sets(st.sampled_from(KEYS)),
            st.integers(0, 9),
            st.sampled_from("ab"),
        ),
        max_size=8,
    )
)
def test_a_state_survives_the_disk_and_any_sequence_is_safe(
    steps: list[tuple[dict[str, bytes], set[str], int, str]],
) -> None:
    state = KillState()
    for values, covered, revision, history in steps:
        observation = seen(values, covered=tuple(covered), revision=revision, history=history)
        before, state = state, ks.observe_store(state, observation)
        assert msgspec.json.decode(msgspec.json.encode(state), type=KillState) == state
        for key, value in values.items():
            if ks.read_entry(key, Entry(value, 1)).engaged:
                assert key in state.store
        for key in before.store.keys() - state.store.keys():
            # Released: by a clear off, or by an absence in the history in which this process saw it present.
            if key not in values:
                assert key in covered
                assert before.store[key].where == "present"
                assert before.store[key].history == history


# -- mechanism ------------------------------------------------------------------------------------------------


def test_the_flag_is_set_before_the_kill_and_the_loop_is_told_afterwards() -> None:
    flags: list[tuple[str, bool]] = []
    box: list[KillSwitch] = []
    one = KillSwitch(
        "h1",
        on_engage=lambda: flags.append(("kill", box[0].engaged)),
        on_change=lambda: flags.append(("change", box[0].engaged)),
    )
    box.append(one)
    one.update_store(seen({ALL: b"on"}))
    assert flags == [("kill", True), ("change", True)]


def test_the_kill_happens_in_the_thread_that_brings_the_news() -> None:
    threads: list[int] = []
    one, _ = switch(on_engage=lambda: threads.append(threading.get_ident()))
    thread = threading.Thread(target=lambda: one.update_store(seen({ALL: b"on"})))
    thread.start()
    thread.join()
    assert threads == [thread.ident]


def test_it_kills_once_however_many_causes_there_are() -> None:
    one, calls = switch()
    one.update_store(seen({ALL: b"on"}))
    one.engage_local("too")
    one.update_file(FileReading(engaged=True))
    assert calls.count("kill") == 1


def test_nothing_changes_and_nobody_is_told_when_the_same_is_seen_again() -> None:
    one, calls = switch()
    one.update_store(seen({ALL: b"on"}))
    calls.clear()
    one.update_store(seen({ALL: b"on"}))
    assert calls == []


def test_a_release_waits_for_the_loop() -> None:
    one, _ = switch(release_spread=60.0)
    one.update_store(seen({ALL: b"on"}))
    one.update_store(seen({ALL: b"off"}, revision=2))
    assert one.engaged
    assert one.pending == PendingRelease(1, ks.release_delay(["@all"], "h1", 60.0), ("@all",))
    assert "released" in str(one.describe()["reason"])
    assert one.confirm_release(1)
    assert not one.engaged
    assert not one.confirm_release(1)


def test_a_ticket_is_worthless_after_another_engagement() -> None:
    one, calls = switch()
    one.engage_local("a")
    assert one.release_local() == ()
    old = one.pending
    one.engage_local("b")
    assert one.pending is None
    assert old is not None
    assert not one.confirm_release(old.ticket)
    one.release_local()
    assert not one.confirm_release(old.ticket)
    assert one.pending is not None
    assert one.confirm_release(one.pending.ticket)
    assert calls.count("kill") == 1


def test_a_local_release_is_immediate_even_when_a_shared_scope_was_released_before() -> None:
    one, _ = switch(release_spread=60.0)
    one.update_store(seen({ALL: b"on"}))
    one.engage_local("x")
    one.update_store(seen({ALL: b"off"}, revision=2))
    one.release_local()
    assert one.pending is not None
    assert one.pending.delay_seconds == 0


def test_release_says_what_still_holds() -> None:
    one, _ = switch()
    one.update_store(seen({ALL: b"on"}))
    one.engage_local("x")
    assert [cause.source for cause in one.release_local()] == [ALL]
    assert one.pending is None


def test_a_saved_engagement_holds_from_the_first_moment_and_kills_nobody() -> None:
    saved = after(seen({ALL: b"on"}))
    one, calls = switch(state=saved)
    assert one.engaged
    assert calls == []
    assert "remembered" in str(one.describe()["reason"])


def test_no_release_while_a_kill_is_being_carried_out() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def kill() -> None:
        inside.set()
        assert go_on.wait(30)

    one, calls = switch(on_engage=kill)
    thread = threading.Thread(target=lambda: one.engage_local("x"))
    thread.start()
    try:
        assert inside.wait(30)
        one.release_local()
        assert one.pending is not None
        assert not one.confirm_release(one.pending.ticket)
        assert one.engaged
        told = len(calls)
    finally:
        go_on.set()
        thread.join(30)
    assert len(calls) == told + 1
    assert one.confirm_release(one.pending.ticket)


def test_a_kill_that_raises_leaves_the_flag_set_and_the_loop_told() -> None:
    def fail() -> None:
        raise OSError("no cgroup")

    one, calls = switch(on_engage=fail)
    with pytest.raises(OSError, match="no cgroup"):
        one.engage_local("x")
    assert one.engaged
    assert calls == ["change"]
    one.release_local()
    assert one.pending is not None
    assert one.confirm_release(one.pending.ticket)


def test_the_description_names_scopes_and_reasons() -> None:
    one, _ = switch()
    assert one.describe() == {"engaged": False, "scopes": [], "reason": "", "orphaned": []}
    one.engage_local("disk full", by="ada")
    one.update_store(seen({ALL: b'{"engaged": true, "reason": "incident"}'}))
    assert one.describe() == {
        "engaged": True,
        "scopes": ["local", "@all"],
        "reason": "disk full (by ada); incident",
        "orphaned": [],
    }


class Machine(RuleBasedStateMachine):
    """Against a model: the flag falls only in a confirmed release, and only when nothing says engaged."""

    def __init__(self) -> None:
        super().__init__()
        self.kills = 0
        self.one = KillSwitch("h1", on_engage=self._kill, on_change=lambda: None)
        self.sources = {"local": False, "file": False, "store": False}
        self.revision = 0
        self.flag = False
        self.tickets: list[int] = []

    def _kill(self) -> None:
        self.kills += 1

    def _set(self, source: str, on: bool) -> None:
        self.sources[source] = on
        if any(self.sources.values()):
            self.flag = True
            self.tickets.clear()
        if self.one.pending is not None:
            self.tickets.append(self.one.pending.ticket)

    @rule(on=st.booleans())
    def store(self, on: bool) -> None:
        self.revision += 1
        self.one.update_store(seen({ALL: b"on" if on else b"off"}, revision=self.revision))
        self._set("store", on)

    @rule(on=st.booleans())
    def file(self, on: bool) -> None:
        self.one.update_file(FileReading(engaged=on))
        self._set("file", on)

    @rule(on=st.booleans())
    def local(self, on: bool) -> None:
        if on:
            self.one.engage_local("x")
        else:
            self.one.release_local()
        self._set("local", on)

    @rule()
    def delete(self) -> None:
        self.revision += 1
        self.one.update_store(seen(revision=self.revision))
        self._set("store", False)

    @precondition(lambda self: self.tickets)
    @rule()
    def confirm(self) -> None:
        assert self.one.confirm_release(self.tickets[-1])
        self.flag = False
        self.tickets.clear()

    @rule(ticket=st.integers(-1, 100))
    def confirm_wrongly(self, ticket: int) -> None:
        if ticket not in self.tickets:
            assert not self.one.confirm_release(ticket)

    @invariant()
    def agrees(self) -> None:
        assert self.one.engaged == self.flag
        assert self.one.state.engaged == any(self.sources.values())
        assert not (any(self.sources.values()) and self.one.pending)


TestMachine = Machine.TestCase


def test_hammered_by_threads_the_flag_never_falls_while_anything_says_engaged() -> None:
    """Workers engage and release as fast as they can, a loop confirms: no thread sees its own engagement undone."""
    wrong: list[str] = []
    releases = 0
    changed = threading.Event()
    stop = threading.Event()
    running = threading.Event()  # stands for the workers: set by the loop when released, cleared by a kill

    one = KillSwitch("h1", on_engage=running.clear, on_change=changed.set, release_spread=0.0)

    def hammer(engage: Callable[[int], None], release: Callable[[int], None]) -> None:
        for number in range(3000):
            engage(number)
            for _ in range(3):
                if not one.engaged:
                    wrong.append(f"{threading.current_thread().name} {number}: engaged and the flag is down")
                if one.pending is not None:
                    wrong.append(f"{threading.current_thread().name} {number}: engaged and a release is pending")
            release(number)

    def loop() -> None:
        nonlocal releases
        while not stop.is_set():
            changed.wait(0.05)
            changed.clear()
            pending = one.pending
            if pending is not None and one.confirm_release(pending.ticket):
                releases += 1
                running.set()
                if one.engaged:  # the gate: whoever engaged meanwhile has killed, or will be seen here
                    running.clear()

    threads = [
        threading.Thread(
            name="store",
            target=hammer,
            args=(
                lambda number: one.update_store(seen({ALL: b"on"}, revision=2 * number + 1)),
                lambda number: one.update_store(seen({ALL: b"off"}, revision=2 * number + 2)),
            ),
        ),
        threading.Thread(
            name="file",
            target=hammer,
            args=(
                lambda _: one.update_file(FileReading(engaged=True)),
                lambda _: one.update_file(FileReading(engaged=False)),
            ),
        ),
        threading.Thread(
            name="local",
            target=hammer,
            args=(lambda _: one.engage_local("x"), lambda _: one.release_local()),
        ),
    ]
    confirmer = threading.Thread(target=loop)
    confirmer.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    one.engage_local("the end")
    assert one.engaged
    assert not running.is_set()
    stop.set()
    confirmer.join(30)
    assert wrong == []
    assert releases > 0
    assert not any(thread.is_alive() for thread in (*threads, confirmer))
