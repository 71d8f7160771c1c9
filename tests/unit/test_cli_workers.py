"""What a worker's state means for the command that is waited for."""

from __future__ import annotations

import pytest

from garrison.fleet.cli.workers import DESIRED, judge
from garrison.supervisor.control.status import WORKER_STATES

COMMANDS = ["start", "stop", "freeze", "thaw", "reset"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", WORKER_STATES)
def test_every_state_has_a_verdict(command: str, state: str) -> None:
    assert judge(command, state) in ("reached", "missed", "under way")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("state", ["starting", "stopping"])
def test_a_worker_on_its_way_is_waited_for(command: str, state: str) -> None:
    assert judge(command, state) == "under way"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_state_that_ends_its_wait(command: str) -> None:
    assert any(judge(command, state) == "reached" for state in WORKER_STATES)


def test_a_killed_worker_counts_as_stopped_but_not_as_started() -> None:
    assert (judge("stop", "killed"), judge("start", "killed")) == ("reached", "missed")


def test_a_reset_waits_for_a_latched_worker_to_leave_that_state() -> None:
    assert (judge("reset", "latched"), judge("reset", "probation")) == ("under way", "reached")


def test_a_state_of_a_newer_agent_is_waited_for() -> None:
    assert judge("start", "pondering") == "under way"


def test_a_reset_wants_nothing_of_the_desired_state() -> None:
    assert "reset" not in DESIRED
