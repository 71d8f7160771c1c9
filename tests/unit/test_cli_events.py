"""`garrison events` for people: one harmless line for anything that calls itself an event."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.cli.events import line_of

ALERT: dict[str, Any] = {
    "@timestamp": "2026-01-02T03:04:05.678Z",
    "event": {"kind": "alert", "action": "reverse_shell", "module": "process", "sequence": 4},
    "process": {"name": "bash", "pid": 321, "command_line": "bash -i", "parent": {"name": "sshd", "pid": 7}},
    "user": {"name": "root"},
    "source": {"ip": "::1", "port": 55},
    "destination": {"ip": "10.0.0.5", "port": 4444},
    "rule": {"name": "Reverse shell"},
    "threat": {"technique": {"id": ["T1059", "T1071"]}},
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["event", "state", "process", "kind", "name", "pid", "@timestamp", "ip", "source"]), inner
        )
    ),
    max_leaves=12,
)


def test_an_alert_says_when_what_who_and_where() -> None:
    line = line_of(json.dumps(ALERT).encode()).plain
    assert line == (
        "03:04:05.678 alert  process reverse_shell “Reverse shell” process=bash(321) parent=sshd(7) cmd=bash -i"
        " user=root from=[::1]:55 to=10.0.0.5:4444 technique=T1059,T1071"
    )


def test_the_agents_stamp_wins_over_what_the_worker_claims() -> None:
    stamped = ALERT | {"agent": {"worker": "network", "priority": "event"}}
    assert line_of(json.dumps(stamped).encode()).plain.startswith("03:04:05.678 event  network ")


def test_a_transition_says_of_which_worker_and_why() -> None:
    event = {"event": {"kind": "state", "action": "worker-tripped", "module": "agent"}}
    state = {
        "worker": "network",
        "from": "running",
        "cause": "cpu",
        "value": 7.5,
        "counters": {"x": 1},
        "a\x1b.b": "\x9b",
    }
    assert line_of(json.dumps(event | {"garrison": state}).encode()).plain == (
        "- state  agent worker-tripped worker=network from=running cause=cpu value=7.5 a\\x1b.b=\\x9b"
    )


def test_fields_written_with_dots_are_found() -> None:
    line = line_of(b'{"event.kind": "state", "event.module": "files", "event.action": "tripped", "message": "cpu"}')
    assert line.plain == "- state  files tripped message=cpu"


def test_escape_sequences_of_an_attacker_are_only_text() -> None:
    evil = {
        "process": {"name": "\x1b]52;c;cm0gLXJm\x07", "command_line": "a\rb\nc\u202e"},
        "event": {"action": "[bold]x"},
    }
    plain = line_of(json.dumps(evil).encode()).plain
    assert "\\x1b]52" in plain
    assert "a\\x0db\\x0ac\\u202e" in plain
    assert "[bold]x" in plain
    assert all(c.isprintable() for c in plain)


def test_long_fields_are_cut() -> None:
    assert len(line_of(json.dumps({"message": "x" * 100_000}).encode()).plain) < 300


@given(JSON)
def test_any_document_is_one_harmless_line(document: Any) -> None:
    plain = line_of(json.dumps(document).encode()).plain
    assert "\n" not in plain
    assert "\x1b" not in plain
    assert len(plain) < 5000


@given(st.binary(max_size=300))
def test_any_bytes_are_one_harmless_line(data: bytes) -> None:
    plain = line_of(data).plain
    assert "\n" not in plain
    assert "\x1b" not in plain
