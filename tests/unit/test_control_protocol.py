"""The control protocol's lines: what passes, what is refused, and that nothing can tear a line apart."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.control import protocol
from garrison.supervisor.control.protocol import ControlError, Dropped

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(op=st.text(max_size=64), args=st.dictionaries(st.text(), JSON, max_size=4))
def test_a_request_comes_back_from_its_line(op: str, args: dict[str, Any]) -> None:
    line = protocol.encode_request(op, args)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    request = protocol.decode_request(line)
    assert (request.op, request.args) == (op, args)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_control_error(line: bytes) -> None:
    refused: ControlError | None = None
    try:
        protocol.decode_request(line)
    except ControlError as error:
        refused = error
    assert refused is None or (refused.code == "bad_request" and refused.remedy)


def test_deep_nesting_is_a_control_error() -> None:
    line = b'{"op":"status","args":{"a":' + b"[" * 20000 + b"]" * 20000 + b"}}"
    with pytest.raises(ControlError):
        protocol.decode_request(line)


def test_a_request_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ControlError, match="over the limit"):
        protocol.encode_request("kill", {"reason": "x" * protocol.MAX_REQUEST_BYTES})


@given(st.binary(max_size=300))
def test_whatever_a_worker_calls_a_document_becomes_one_line_that_can_be_read(data: bytes) -> None:
    line = protocol.item_line(data)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    reply = protocol.decode_reply(line)
    assert isinstance(reply.item, msgspec.Raw)
    json.loads(bytes(reply.item))


@given(JSON)
def test_an_encoded_document_passes_unchanged_in_meaning(document: Any) -> None:
    text = json.dumps(document, indent=1).encode()
    reply = protocol.decode_reply(protocol.item_line(text))
    assert isinstance(reply.item, msgspec.Raw)
    assert json.loads(bytes(reply.item)) == document


@pytest.mark.parametrize("data", [b"", b"{}{}", b'{"a":"\x1b[2J"}', b'{"a":"\xff"}', b"[" * 100_000])
def test_what_is_not_one_document_goes_out_marked(data: bytes) -> None:
    reply = protocol.decode_reply(protocol.item_line(data))
    assert isinstance(reply.item, msgspec.Raw)
    assert set(json.loads(bytes(reply.item))) == {"undecodable"}


def test_a_handler_may_report_what_its_own_queue_has_dropped() -> None:
    assert protocol.decode_reply(protocol.item_line(Dropped(7))).dropped == 7


def test_a_reply_over_the_limit_is_refused() -> None:
    with pytest.raises(ControlError) as refused:
        protocol.result_line("x" * protocol.MAX_REPLY_BYTES)
    assert refused.value.code == "reply_too_large"


@given(st.text(st.characters(), max_size=200), st.text(st.characters(), max_size=200))
def test_an_error_of_any_text_is_one_line_that_can_be_read(message: str, remedy: str) -> None:
    line = protocol.error_line(ControlError(message, remedy))
    assert line.count(b"\n") == 1
    assert protocol.decode_reply(line).error is not None


def test_a_huge_error_is_cut_to_fit() -> None:
    assert len(protocol.error_line(ControlError("x" * 10_000_000, "y" * 10_000_000))) < protocol.MAX_REPLY_BYTES


def test_arguments_come_back_complete() -> None:
    assert protocol.check_args("events", {"last": 3}) == {"follow": False, "last": 3, "kinds": [], "workers": []}


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("start", {}),
        ("start", {"worker": ""}),
        ("start", {"worker": 3}),
        ("start", {"worker": "x" * 129}),
        ("status", {"verbose": True}),
        ("kill", {"reason": "x" * 513}),
        ("events", {"last": -1}),
        ("events", {"last": 1001}),
        ("events", {"kinds": ["loud"]}),
    ],
)
def test_arguments_that_are_wrong_are_refused(op: str, args: dict[str, Any]) -> None:
    with pytest.raises(ControlError) as refused:
        protocol.check_args(op, args)
    assert refused.value.code == "bad_request"
    assert op in refused.value.message


def test_an_unknown_operation_names_the_nearest_and_all() -> None:
    with pytest.raises(ControlError, match="did you mean 'status'") as refused:
        protocol.check_args("statuss", {})
    assert refused.value.code == "unknown_op"
    assert "release" in refused.value.remedy


def test_an_unknown_worker_names_the_nearest_and_all() -> None:
    error = protocol.unknown_worker("netwrk", ["process", "network"])
    assert "did you mean 'network'" in error.message
    assert error.remedy == "workers: network, process"
    assert "none is configured" in protocol.unknown_worker("x", []).remedy
