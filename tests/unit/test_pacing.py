"""Backoff, spread and the token bucket, as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.pacing import TokenBucket, backoff, spread

attempts = st.integers(-3, 200)
hosts = st.text(max_size=20)


@given(hosts, st.text(max_size=10))
def test_spread_is_fixed_for_an_identity_and_inside_its_range(host: str, purpose: str) -> None:
    assert spread(host, purpose) == spread(host, purpose)
    assert 0 <= spread(host, purpose) < 1


def test_spread_is_even_over_a_fleet() -> None:
    tenths = [0] * 10
    for number in range(10_000):
        tenths[int(spread(f"web{number}", "release") * 10)] += 1
    assert all(850 < count < 1150 for count in tenths)


@given(attempts, hosts, st.floats(0, 1))
def test_backoff_stays_between_its_jittered_floor_and_its_cap(attempt: int, host: str, jitter: float) -> None:
    wait = backoff(attempt, base=1.0, cap=15.0, identity=(host, "etcd"), jitter=jitter)
    whole = min(15.0, 2.0 ** max(0, min(attempt, 64)))
    assert whole * (1 - jitter) <= wait <= whole


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=60))
def test_a_bucket_never_admits_more_than_rate_burst_and_one_debt(steps: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate=10, burst=20)
    now, admitted, largest = 0.0, 0, 0
    for wait, count in steps:
        now += wait
        if bucket.admit(count, now):
            admitted += count
            largest = max(largest, count)
    assert admitted <= 20 + 10 * now + largest + 1e-6


def test_a_bucket_does_not_fill_when_time_goes_backwards() -> None:
    bucket = TokenBucket(rate=1, burst=1)
    assert bucket.admit(1, 100.0)
    assert not bucket.admit(1, 50.0)
    assert not bucket.admit(1, 100.5 - 0.5)
    assert bucket.admit(1, 101.5)


def test_a_batch_larger_than_the_burst_passes_once_and_is_paid_back() -> None:
    bucket = TokenBucket(rate=10, burst=5)
    assert bucket.admit(100, 0.0)
    assert not bucket.admit(1, 9.0)
    assert bucket.admit(1, 9.7)
