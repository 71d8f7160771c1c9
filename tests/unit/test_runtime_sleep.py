"""How long a worker's main thread sleeps."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.runtime.process import poll_milliseconds


@given(st.one_of(st.floats(allow_nan=False), st.just(-math.inf), st.just(math.inf)))
def test_any_due_time_makes_a_sleep_that_poll_can_take(seconds: float) -> None:
    """An outbox that is due at once says minus infinity; it used to end the worker."""
    milliseconds = poll_milliseconds(seconds)
    assert 0 <= milliseconds <= 3_600_000
    assert milliseconds >= min(max(seconds, 0), 3600) * 1000


def test_a_fraction_of_a_millisecond_is_rounded_up() -> None:
    assert poll_milliseconds(0.0004) == 1
