"""What goes where on the way out, and how fast: the decisions, without threads or disks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import PRIORITIES, Priority
from garrison.supervisor.events.flow import COMMIT_SECONDS, COMPANY_BYTES, STALL_SECONDS, TROUBLE_SECONDS, Flow
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.pacing import URGENT, DrainPace
from garrison.supervisor.events.queue import OVERHEAD_BYTES, Batch, EventQueue

MIB = 1024 * 1024


class Shelf:
    """A spool without a disk: what it was given is ready at once."""

    def __init__(self) -> None:
        self.error = ""
        self.contents = self
        self.ready = EventQueue(2**62)

    def blocks(self, priority: Priority) -> bool:
        return self.ready.holds(priority)


class Books:
    def __init__(self) -> None:
        self.ledger = WorkerLedger("w")
        self.made: Counter[Priority] = Counter()

    def batch(self, priority: Priority = "event", size: int = 10) -> Batch:
        self.made[priority] += 1
        number = self.made[priority]
        self.ledger.emit(1, priority, number, 1)
        return Batch("w", self.ledger, priority, 1, b"x" * size, "w", 1, number)


def flow(*, always: bool = False, max_bytes: int = MIB) -> tuple[Flow, Shelf]:
    made, shelf = Flow(max_bytes, always=always), Shelf()
    made.spool = shelf
    return made, shelf


def test_a_healthy_sink_takes_everything_from_memory() -> None:
    books, (way, _shelf) = Books(), flow()
    way.put(books.batch())
    assert way.store_at(5.0) is None
    taken, wait = way.take(MIB, 5.0)
    assert ([batch.first for batch in taken], wait) == ([1], None)


def test_a_short_failure_is_waited_for_and_a_longer_one_goes_to_the_spool() -> None:
    books, (way, _shelf) = Books(), flow()
    way.put(books.batch())
    way.held.extend(way.take(MIB, 0.0)[0])
    way.put(books.batch())
    way.trouble_since = 10.0
    assert way.store_at(10.1) == 10.0 + TROUBLE_SECONDS
    gathered = way.gather(MIB, 11.0)
    assert [batch.first for batch in gathered] == [1, 2]
    assert [batch.first for batch in way.held] == [1], "the sink goes on trying what it has"
    assert not way.queue


def test_a_queue_that_fills_while_the_sink_fails_goes_to_the_spool_at_once() -> None:
    books, (way, _shelf) = Books(), flow(max_bytes=10_000)
    way.put(books.batch(size=3000))
    way.trouble_since = 10.0
    at = way.store_at(10.1)
    assert at is not None
    assert at <= 10.1


def test_a_write_that_hangs_sends_what_comes_after_it_to_the_spool() -> None:
    books, (way, _shelf) = Books(), flow()
    way.held.append(books.batch())
    way.busy_since = 20.0
    assert way.store_at(20.0) is None
    way.put(books.batch())
    assert way.store_at(20.0) == 20.0 + STALL_SECONDS
    assert [batch.first for batch in way.gather(MIB, 24.0)] == [2], "what the sink is writing stays with it"


def test_with_always_events_wait_for_company_and_alerts_do_not() -> None:
    books, (way, _shelf) = Books(), flow(always=True)
    way.put(books.batch())
    way.gather(MIB, 1.0)
    way.put(books.batch())
    assert way.store_at(1.01) == 1.0 + COMMIT_SECONDS
    way.put(books.batch("alert"))
    assert way.store_at(1.01) == 1.01


def test_with_always_nothing_goes_past_the_spool_unless_it_is_broken() -> None:
    books, (way, shelf) = Books(), flow(always=True)
    way.put(books.batch())
    assert way.take(MIB, 0.0) == ([], None)
    shelf.error = "no disk"
    assert [batch.first for batch in way.take(MIB, 0.0)[0]] == [1]


def test_older_events_in_the_spool_go_first_and_hold_up_only_their_own_priority() -> None:
    books, (way, shelf) = Books(), flow()
    shelf.ready.put(books.batch())
    way.put(books.batch())
    way.put(books.batch("alert"))
    taken, _wait = way.take(MIB, 0.0)
    assert [(batch.priority, batch.first) for batch in taken] == [("alert", 1), ("event", 1)]
    assert [(batch.priority, batch.first) for batch in way.take(MIB, 0.0)[0]] == [("event", 2)]


def test_what_could_not_be_stored_comes_back_in_its_place() -> None:
    books, (way, _shelf) = Books(), flow(always=True)
    for _ in range(3):
        way.put(books.batch())
    gathered = way.gather(2 * (10 + OVERHEAD_BYTES), 0.0)
    assert [batch.first for batch in gathered] == [1, 2]
    way.put_back(gathered)
    assert [batch.first for batch in way.queue] == [1, 2, 3]


def test_orders_follow_those_of_an_earlier_master() -> None:
    books, (way, _shelf) = Books(), flow()
    way.put(books.batch())
    way.follow(100)
    way.put(books.batch())
    assert [batch.order for batch in way.queue] == [101, 102]


moves = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(PRIORITIES)),
        st.tuples(st.sampled_from(["take", "fail", "well", "store", "refuse", "busy"]), st.just("event")),
    ),
    max_size=80,
)


@given(st.booleans(), moves)
def test_every_batch_reaches_the_sink_once_and_in_the_order_of_its_priority(
    always: bool, script: list[tuple[str, Priority]]
) -> None:
    books, (way, shelf) = Books(), flow(always=always)
    out: list[Batch] = []
    now = 0.0

    def store(*, refuse: bool = False) -> None:
        gathered = way.gather(1000, now)
        if refuse:
            way.put_back(gathered)
            return
        held = {id(batch) for batch in way.held}
        for batch in gathered:
            batch.stored = True
            if id(batch) not in held:
                shelf.ready.put(batch)

    def deliver() -> None:
        if not way.held:
            way.held.extend(way.take(1000, now)[0])
        out.extend(way.held)
        way.held.clear()

    for move, priority in [*script, ("well", "event")]:
        now += 0.3
        at = way.store_at(now)
        if move == "put":
            way.put(books.batch(priority))
        elif move == "fail":
            way.held.extend(way.take(1000, now)[0] if not way.held else [])
            way.trouble_since = way.trouble_since or now
        elif move == "well":
            way.trouble_since = way.busy_since = None
            deliver()
        elif move in ("store", "refuse") and at is not None and at <= now:
            store(refuse=move == "refuse")
        elif move == "busy":
            way.held.extend(way.take(1000, now)[0] if not way.held else [])
            way.busy_since = now
        elif move == "take" and way.trouble_since is None and way.busy_since is None:
            deliver()
    while way.queue or shelf.ready or way.held:
        now += 1.0
        if always and way.queue:
            store()
        deliver()
    for priority in PRIORITIES:
        assert [batch.first for batch in out if batch.priority == priority] == list(range(1, books.made[priority] + 1))


# The pace of the spool's way out


@given(st.text(max_size=20), st.floats(0, 1000), st.floats(0, 3600))
def test_a_host_waits_its_share_of_the_spread_and_never_longer_than_the_outage(
    host: str, away: float, spread: float
) -> None:
    pace = DrainPace(host, 1000.0, spread)
    pace.away(50.0)
    pace.back(50.0 + away)
    wait = pace.wait("event", 50.0 + away)
    assert wait <= min(spread, away) + 1.0 / 1000 + 1e-6
    assert pace.wait("alert", 50.0 + away) == 0.0
    assert pace.wait("state", 50.0 + away) == 0.0


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 5000)), min_size=1, max_size=60))
def test_a_backlog_leaves_at_the_rate_and_what_comes_in_meanwhile_is_added(steps: list[tuple[float, int]]) -> None:
    rate, now, sent, came = 1000.0, 100.0, 0, 0
    pace = DrainPace("host", rate, 0.0)
    pace.away(0.0)
    pace.back(now)
    start, largest = now, max(size for _, size in steps)
    for pause, size in steps:
        now += pause
        if size % 3 == 0:
            pace.arrived(size, now)
            came += size
        if pace.wait("event", now) == 0.0:
            pace.took("event", size, now)
            sent += size
        assert sent <= rate * (now - start) + came + largest + rate


@given(st.integers(1, 10_000))
def test_who_waits_as_long_as_told_may_go_then(size: int) -> None:
    pace = DrainPace("host", 500.0, 30.0)
    pace.begin(7.0)
    now = 7.0
    for _ in range(3):
        now += pace.wait("metric", now) + 1e-6
        assert pace.wait("metric", now) == 0.0
        pace.took("metric", size, now)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    pace = DrainPace("host", 100.0, 0.0)
    pace.took("event", 1000, 50.0)
    waits = pace.wait("event", 50.0)
    assert pace.wait("event", 20.0) >= waits


def test_few_events_wait_for_company_and_an_alert_takes_them_along() -> None:
    books, (way, _shelf) = Books(), flow()
    way.company_until = 11.0
    way.put(books.batch())
    assert way.take(MIB, 10.25) == ([], 0.75)
    way.put(books.batch("alert"))
    taken, _wait = way.take(MIB, 10.5)
    assert [batch.priority for batch in taken] == ["alert", "event"]


def test_the_wait_for_company_ends_with_its_time_and_with_enough_of_it() -> None:
    books, (way, _shelf) = Books(), flow()
    way.company_until = 11.0
    way.put(books.batch())
    assert len(way.take(MIB, 11.0)[0]) == 1
    way.company_until = 12.0
    way.put(books.batch(size=COMPANY_BYTES // 2))
    assert way.take(MIB, 11.5)[0] == []
    way.put(books.batch(size=COMPANY_BYTES // 2))
    assert len(way.take(MIB, 11.5)[0]) == 2


@given(
    st.lists(st.tuples(st.sampled_from(PRIORITIES), st.integers(1, COMPANY_BYTES)), max_size=6),
    st.floats(0, 2),
    st.floats(0, 2),
    st.floats(0, 90),
)
def test_who_waits_for_company_comes_by_before_it_is_over(
    offered: list[tuple[Priority, int]], until: float, now: float, pace: float
) -> None:
    """What is put while it waits wakes nobody, so it must not sleep longer for the sake of anything else."""
    books = Books()
    way = Flow(MIB, throttles=(Fixed(pace),))
    way.company_until = until
    for priority, size in offered:
        way.put(books.batch(priority, size))
    lingers = way.lingers(now)
    taken, wait = way.take(MIB, now)
    assert not (taken and lingers)
    if not taken and now < until:
        assert wait is not None
        assert wait <= until - now


class Fixed:
    """A throttle that always asks for the same wait, but for what is urgent."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wait(self, priority: Priority, now: float) -> float:
        return 0.0 if priority in URGENT else self._seconds

    def took(self, priority: Priority, size: int, now: float) -> None:
        """Nothing is counted."""
