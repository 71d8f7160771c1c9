"""Which configuration a worker has: offers, answers, restarts."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from garrison.ipc.messages import Config, Hold
from garrison.supervisor.settings import Budget
from garrison.supervisor.worker.configuration import ConfigurationState, Offer, pace_of

GOOD, BAD, OTHER = (Offer(revision=n, hash=name, settings={"is": name}) for n, name in enumerate(("good", "bad", "x")))

PACE = pace_of(Budget())


def test_a_first_offer_is_new_and_the_same_one_again_is_not_once_it_was_sent() -> None:
    state = ConfigurationState()
    assert state.offers(GOOD)
    state.first(PACE)
    assert not state.offers(GOOD)


def test_a_refused_offer_is_not_sent_to_the_next_process_where_another_was_taken() -> None:
    state = ConfigurationState()
    state.offers(GOOD)
    state.answered(state.first(PACE).revision, True, None)
    assert state.offers(BAD)
    state.answered(state.current(PACE).revision, False, "no")
    assert (state.status, state.error) == ("rejected", "no")
    again = state.first(PACE)
    assert again.hash == "good"
    state.answered(again.revision, True, None)
    assert (state.status, state.error, state.offer) == ("rejected", "no", BAD)
    assert state.offers(GOOD)


def test_a_new_pace_does_not_bring_a_refused_offer_back() -> None:
    state = ConfigurationState(taken=GOOD)
    state.offers(BAD)
    state.answered(state.first(PACE).revision, False, "no")
    current = state.current(pace_of(Budget(beat_seconds=1, events_per_second=10)))
    assert (current.hash, current.beat_seconds, current.events_per_second) == ("good", 1, 10)


def test_the_worker_is_told_what_of_its_budget_it_paces_itself_by() -> None:
    budget = Budget(cpu_trip_percent=3, cpu_trip_samples=7, cpu_quota_percent=9, sample_seconds=2)
    config = ConfigurationState(taken=GOOD).current(pace_of(budget))
    assert (config.cpu_trip_percent, config.cpu_trip_samples, config.cpu_quota_percent, config.sample_seconds) == (
        3,
        7,
        9,
        2,
    )


def test_what_an_earlier_process_knew_of_its_modules_goes_to_the_next_one_only() -> None:
    state = ConfigurationState(taken=GOOD)
    held = {"scan": Hold(phase="latched", trips=5)}
    assert state.first(PACE, held).held == held
    assert state.current(PACE).held == {}


def test_an_answer_to_an_offer_that_was_replaced_says_nothing_about_the_new_one() -> None:
    state = ConfigurationState()
    state.offers(BAD)
    late = state.first(PACE)
    state.offers(GOOD)
    state.answered(late.revision, False, "no")
    assert state.status == "pending"
    assert state.answered(12345, True, None) is None
    assert state.status == "pending"


def test_a_refusal_without_a_reason_is_given_one() -> None:
    state = ConfigurationState()
    state.offers(BAD)
    state.answered(state.first(PACE).revision, False, None)
    assert state.error


@given(st.integers(1, 200))
def test_a_worker_that_never_answers_costs_a_bounded_memory(count: int) -> None:
    state = ConfigurationState()
    for number in range(count):
        state.offers(Offer(hash=str(number)))
        state.current(PACE)
    assert len(state._sent) <= 16


class Machine(RuleBasedStateMachine):
    """A master that offers, a worker that answers in any order or not at all, and restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.state = ConfigurationState()
        self.sent: list[Config] = []
        self.accepted: set[str] = set()

    @rule(offer=st.sampled_from([GOOD, BAD, OTHER]))
    def offer(self, offer: Offer) -> None:
        if self.state.offers(offer):
            self.sent.append(self.state.current(PACE))
            assert self.sent[-1].hash == offer.hash

    @rule()
    def restart(self) -> None:
        before = self.state.status
        config = self.state.first(PACE)
        if before == "rejected" and self.state.taken is not None:
            assert config.hash == self.state.taken.hash
        else:
            assert config.hash == self.state.offer.hash
        self.sent = [config]

    @rule(pace=st.floats(1, 60))
    def pace(self, pace: float) -> None:
        self.sent.append(self.state.current(msgspec.structs.replace(PACE, beat_seconds=pace)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), ok=st.booleans())
    def answer(self, data: st.DataObject, ok: bool) -> None:
        config = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        if ok:
            self.accepted.add(config.hash)
        self.state.answered(config.revision, ok, None if ok else "no")

    @invariant()
    def only_what_was_accepted_was_taken(self) -> None:
        if self.state.taken is not None:
            assert self.state.taken.hash in self.accepted

    @invariant()
    def the_error_is_there_exactly_when_it_was_rejected(self) -> None:
        assert (self.state.error is not None) == (self.state.status == "rejected")

    @invariant()
    def what_is_applied_is_what_was_taken(self) -> None:
        if self.state.status == "applied":
            assert self.state.taken is not None
            assert self.state.taken.hash == self.state.offer.hash


TestMachine = Machine.TestCase
