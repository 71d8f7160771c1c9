"""The agent as a fixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import RunningAgent


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., RunningAgent]]:
    """Make agents that are cleaned up however the test ends."""
    made: list[RunningAgent] = []

    def make(*arguments: Any, **keywords: Any) -> RunningAgent:
        agent = RunningAgent(tmp_path / f"agent{len(made)}", *arguments, **keywords)
        made.append(agent)
        return agent

    yield make
    for agent in reversed(made):
        agent.cleanup()
