from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.stores import values
from garrison.supervisor.stores.values import ValueRefusedError

PARSERS: list[Callable[[bytes], Any]] = [
    values.text_of,
    values.document_of,
    values.object_of,
    values.rules_of,
    values.action_of,
    values.log_level_of,
    values.killswitch_of,
    values.master_of,
    values.kafka_servers_of,
    values.kafka_topic_of,
    values.body_reference,
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=20,
)


def _refusal(parser: Callable[[bytes], Any], value: bytes) -> str:
    try:
        parser(value)
    except ValueRefusedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("parser", PARSERS)
@given(value=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_value_or_refused(parser: Callable[[bytes], Any], value: bytes) -> None:
    assert len(_refusal(parser, value)) < 1000


@pytest.mark.parametrize("parser", PARSERS)
@given(document=json_values)
def test_any_json_is_a_value_or_refused(parser: Callable[[bytes], Any], document: Any) -> None:
    import json

    assert len(_refusal(parser, json.dumps(document).encode())) < 1000


@pytest.mark.parametrize("parser", [values.document_of, values.killswitch_of, values.master_of, values.action_of])
@pytest.mark.parametrize("text", ["[" * 60_000, '{"a":' * 10_000, "[" * 40 + "]" * 40, '{"engaged":' * 200])
def test_deep_nesting_is_refused(parser: Callable[[bytes], Any], text: str) -> None:
    with pytest.raises(ValueRefusedError):
        parser(text.encode())


def test_numbers_that_no_frame_can_carry_are_refused() -> None:
    for number in (str(2**64), "-" + "9" * 30, "1e999"):
        with pytest.raises(ValueRefusedError):
            values.document_of(f'{{"n": {number}}}'.encode())


def test_a_document_that_grows_too_much_on_the_way_is_refused() -> None:
    with pytest.raises(ValueRefusedError, match="msgpack"):
        values.document_of(b"[" + b"1e5," * 200_000 + b"1]", values.MAX_BODY_BYTES)


@pytest.mark.parametrize("value", [b"stop", b" STOP\r\n", b'"stop"', b'{"action": "Stop"}', b"\xef\xbb\xbfstop"])
def test_an_action_may_be_text_or_json(value: bytes) -> None:
    assert values.action_of(value) == "stop"


@pytest.mark.parametrize("value", [b"", b"stopp", b"{}", b'{"action": 1}', b"null", b"stop start", b"st\x00op"])
def test_what_is_no_action_is_refused(value: bytes) -> None:
    with pytest.raises(ValueRefusedError):
        values.action_of(value)


def test_log_levels_go_by_their_syslog_names_and_the_usual_synonyms() -> None:
    assert values.log_level_of(b"WARN\n") == "warning"
    assert values.log_level_of(b'"err"') == "err"
    assert values.log_level_of(b"error") == "err"
    with pytest.raises(ValueRefusedError):
        values.log_level_of(b"loud")


def test_a_killswitch_may_carry_who_and_why() -> None:
    said = values.killswitch_of(b'{"engaged": true, "reason": "x", "by": "ada", "at": "now", "ticket": 1}')
    assert said == values.KillValue(True, "x", "ada", "now")
    assert values.killswitch_of(b" Off\n") == values.KillValue(False)


@pytest.mark.parametrize("value", [b"", b"0", b"false", b"no", b'{"engaged": 0}', b'{"reason": "x"}', b"of", b"\xff"])
def test_a_killswitch_that_does_not_say_off_clearly_is_unreadable(value: bytes) -> None:
    with pytest.raises(ValueRefusedError):
        values.killswitch_of(value)


def test_unknown_fields_of_the_master_are_refused_with_their_name() -> None:
    with pytest.raises(ValueRefusedError, match="hartbeat"):
        values.master_of(b'{"hartbeat_seconds": 30}')
    with pytest.raises(ValueRefusedError, match=r"group name"):
        values.master_of(b'{"groups": ["@all"]}')
    with pytest.raises(ValueRefusedError):
        values.master_of(b'{"sink": {"backend": "file", "path": "/etc/passwd"}}')
    found = values.master_of(b'{"groups": ["web"], "heartbeat_seconds": 30, "log_level": "debug"}')
    assert (found.groups, found.heartbeat_seconds, found.log_level) == (["web"], 30, "debug")


def test_kafka_servers_may_be_a_list_text_or_an_ipv6_address() -> None:
    assert values.kafka_servers_of(b"a:1, b:2\n") == ("a:1", "b:2")
    assert values.kafka_servers_of(b'["a:1"]') == ("a:1",)
    assert values.kafka_servers_of(b"[::1]:9092") == ("[::1]:9092",)
    for bad in (b"", b"a:0", b"a:99999", b"a b", b"http://a"):
        with pytest.raises(ValueRefusedError):
            values.kafka_servers_of(bad)


def test_topics_follow_the_rules_of_kafka() -> None:
    assert values.kafka_topic_of(b"hids.events_1\n") == "hids.events_1"
    for bad in (b"", b"..", b"a/b", b"x" * 250):
        with pytest.raises(ValueRefusedError):
            values.kafka_topic_of(bad)


def test_a_reference_to_a_body_is_told_from_a_document() -> None:
    sha256 = hashlib.sha256(b"").hexdigest()
    assert values.body_reference(f"id:{sha256}\n".encode()) == sha256
    assert values.body_reference(f'"id:{sha256.upper()}"'.encode()) == sha256
    assert values.body_reference(b'{"id": 1}') is None
    with pytest.raises(ValueRefusedError):
        values.body_reference(b"id:123")


@given(json_values)
def test_what_is_taken_can_be_sent(document: Any) -> None:
    import json

    try:
        taken = values.document_of(json.dumps(document).encode())
    except ValueRefusedError:
        return
    msgspec.msgpack.encode(taken)
    msgspec.json.encode(taken)
