"""When the next worker is looked at."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from garrison.supervisor.lifecycle import State
from garrison.supervisor.looking import Looker
from garrison.supervisor.sampler import SAMPLE_SECONDS


class NoSampler:
    def keep(self, living: set[tuple[str, int]]) -> None:
        assert living == set()


def looker(*periods: float) -> Looker:
    workers: dict[str, Any] = {
        f"w{number}": SimpleNamespace(
            process=None, state=State.STOPPED, desired=SimpleNamespace(budget=SimpleNamespace(sample_seconds=period))
        )
        for number, period in enumerate(periods)
    }
    return Looker(workers, NoSampler())  # type: ignore[arg-type]


@pytest.mark.parametrize(("periods", "pause"), [((), SAMPLE_SECONDS), ((0.2, 5.0), 0.2), ((60.0,), SAMPLE_SECONDS)])
def test_a_worker_that_may_start_at_any_time_is_looked_at_in_its_own_period(
    periods: tuple[float, ...], pause: float
) -> None:
    assert looker(*periods).look(100.0) == pause
