"""A whole agent and a real broker: what the agent says and what a consumer finds are the same."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e._agent import module, needs_cgroups, until
from tests.kafka.brokers import Tansu
from tests.kafka.fetch import MissingError

pytestmark = needs_cgroups

TALKER = f'[workers.talker]\nmodules = ["{module("talker", "Talker")}"]\n'


@pytest.mark.parametrize("records", [1, 50])
def test_a_topic_holds_what_the_books_say_through_a_killed_master(
    make_agent: Any, tmp_path: Path, records: int
) -> None:
    try:
        broker = Tansu(tmp_path / "broker")
    except MissingError as error:
        pytest.skip(str(error))
    with broker:
        broker.create_topic("hids")
        kafka = f'topic = "hids"\nbootstrap_servers = {json.dumps(broker.bootstrap)}\nrecords_per_message = {records}\n'
        agent = make_agent(TALKER, more=f'[sink]\nbackend = "kafka"\n[sink.kafka]\n{kafka}[heartbeat]\nseconds = 1\n')
        agent.start()
        until(lambda: agent.worker("talker")["events"]["delivered"] > 1000, "events in the topic")
        agent.kill()
        agent.start()
        before = agent.worker("talker")["events"]["delivered"]
        assert before > 1000
        until(lambda: agent.worker("talker")["events"]["delivered"] > before + 500, "more events")
        time.sleep(2)  # a heartbeat or two

        def look() -> dict[str, Any] | None:
            done = agent.garrison("reconcile", "--json", "--all")
            assert done.returncode in (0, 1), done.stderr
            report: dict[str, Any] = json.loads(done.stdout)
            return report if not report["summary"]["unexplained"] else None

        report = until(look, "nothing is missing without a reason")
        summary = report["summary"]
        assert summary["complete"]
        assert summary["bad_lines"] == 0
        assert summary["arrived"] > 1500
        assert agent.stop() == 0
        # After an orderly end everything that was ever emitted is in the topic, or has a reason.
        report = until(look, "nothing is missing without a reason")
        [talker] = [worker for worker in report["workers"] if worker["worker"] == "talker"]
        assert talker["unexplained"] == 0


def test_brokers_that_are_not_there_are_an_error_that_says_so(make_agent: Any) -> None:
    agent = make_agent()
    started = time.monotonic()
    done = agent.garrison("reconcile", "--bootstrap", "127.0.0.1:1", "--topic", "x")
    assert done.returncode == 69
    assert "127.0.0.1:1" in done.stderr
    assert time.monotonic() - started < 55
