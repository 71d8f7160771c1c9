"""Which numbers a worker is told are safe."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Priority
from garrison.supervisor.worker.acknowledging import Acknowledger
from garrison.workers.runtime.outbox import WINDOW_BYTES, Outbox

counts_and_order = st.lists(st.integers(1, 9), min_size=1, max_size=30).flatmap(
    lambda counts: st.tuples(st.just(counts), st.permutations(range(len(counts))))
)


@given(counts_and_order)
def test_a_number_is_told_when_everything_before_it_is_settled(case: tuple[list[int], list[int]]) -> None:
    counts, order = case
    lasts = [sum(counts[: at + 1]) for at in range(len(counts))]
    told: list[tuple[Priority, int]] = []

    async def run() -> None:
        acknowledger = Acknowledger(lambda priority, through: told.append((priority, through)))
        for last in lasts:
            acknowledger.expect("event", last)
        settled: set[int] = set()
        for at in order:
            acknowledger.settle("event", lasts[at])
            settled.add(at)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            safe = next((index for index in range(len(lasts)) if index not in settled), len(lasts))
            assert (told[-1][1] if told else 0) == (lasts[safe - 1] if safe else 0)

    asyncio.run(run())
    assert told[-1] == ("event", lasts[-1])


def test_an_acknowledgement_after_the_end_of_the_loop_is_nobodys() -> None:
    async def make() -> Acknowledger:
        return Acknowledger(lambda _priority, _through: None)

    acknowledger = asyncio.run(make())
    acknowledger.expect("alert", 1)
    acknowledger.settle("alert", 1)


LINE = b'{"x":"' + b"x" * 1000 + b'"}\n'


def filled(outbox: Outbox, priority: Priority, count: int) -> None:
    for _ in range(count):
        outbox.put(priority, LINE, 0.0)


def drained(outbox: Outbox, *, force: bool = False) -> int:
    last = 0
    while (batch := outbox.take(1000.0, force=force)) is not None:
        last = batch.first + batch.count - 1
    return last


def test_a_worker_hands_over_a_bounded_amount_that_is_not_acknowledged() -> None:
    outbox = Outbox(8 * WINDOW_BYTES, lambda: None)
    outbox.expect_acks(True)
    filled(outbox, "event", 2000)
    last = drained(outbox)
    assert WINDOW_BYTES <= last * (len(LINE) + 256) < WINDOW_BYTES + 128 * 1024
    assert outbox.unacknowledged() == last
    assert outbox.next_flush(1000.0) in (None, float("inf"))
    filled(outbox, "alert", 1)
    assert drained(outbox) == 1, "an alert still goes"
    outbox.acknowledge("event", last // 2)
    assert drained(outbox) > last, "what was acknowledged makes room"
    assert drained(outbox, force=True) == 2000, "at its end a worker hands over all it has"


def test_without_acknowledgements_nothing_is_held_back_or_remembered() -> None:
    outbox = Outbox(8 * WINDOW_BYTES, lambda: None)
    filled(outbox, "event", 2000)
    assert drained(outbox) == 2000
    assert outbox.unacknowledged() == 0
    outbox.acknowledge("event", 2000)


def test_acknowledgements_that_are_not_expected_any_more_are_forgotten() -> None:
    outbox = Outbox(8 * WINDOW_BYTES, lambda: None)
    outbox.expect_acks(True)
    filled(outbox, "event", 2000)
    drained(outbox)
    outbox.expect_acks(False)
    assert outbox.unacknowledged() == 0
    assert drained(outbox) == 2000
