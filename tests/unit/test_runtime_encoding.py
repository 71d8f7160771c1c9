"""Encoding: nothing that a module emits or logs can raise, forge a line or leave as invalid UTF-8."""

from __future__ import annotations

import ipaddress
import json
import os
from collections import deque
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.runtime.clock import CoarseClock, iso8601
from garrison.workers.runtime.emitter import Emitter, NotSentError
from garrison.workers.runtime.encoding import UnencodableError, encode_line, printable, sanitise
from garrison.workers.runtime.logs import MESSAGE_BYTES, LevelFilter, PipeLogger, describe, trace
from garrison.workers.runtime.notices import LOG_BYTES, Notices
from garrison.workers.runtime.outbox import Outbox

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates included
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(any_text, documents, max_size=4))
def test_any_document_of_plain_values_becomes_one_line_of_valid_json(document):
    line = encode_line(document)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    json.loads(line.decode("utf-8"))


@given(st.binary(max_size=50))
def test_a_file_name_that_is_no_utf8_keeps_its_bytes_readable(raw):
    text = os.fsdecode(raw)
    line = json.loads(encode_line({"path": text}))["path"]
    assert line == raw.decode("utf-8", "backslashreplace")


def test_common_objects_have_a_sensible_form():
    document = {
        "set": {1},
        "path": Path("/tmp/x"),
        "odd_path": Path(os.fsdecode(b"/\xff")),
        "error": ValueError("no"),
        "deque": deque([1]),
        "address": ipaddress.ip_address("::1"),
        "bytes": b"\x00",
        "view": memoryview(b"\x00"),
        "nan": float("nan"),
    }
    assert json.loads(encode_line(document)) == {
        "set": [1],
        "path": "/tmp/x",
        "odd_path": "/\\xff",
        "error": "ValueError: no",
        "deque": [1],
        "address": "::1",
        "bytes": "AA==",
        "view": "AA==",
        "nan": None,
    }


def cycle() -> dict[str, object]:
    document: dict[str, object] = {}
    document["self"] = document
    return document


class Hostile:
    def __fspath__(self) -> str:
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    "document",
    [{"x": object()}, {(1, 2): 3}, cycle(), {"x": Hostile()}, {"x": msgspec.Raw(b'"a"\n')}],
    ids=["object", "key", "cycle", "raising", "raw newline"],
)
def test_what_has_no_json_form_is_an_unencodable_error(document):
    with pytest.raises(UnencodableError):
        encode_line(document)


def test_an_event_that_cannot_be_encoded_keeps_its_number_as_a_drop():
    box = Outbox(10_000, lambda: None)
    emitter = Emitter(box, "w")
    with pytest.raises(NotSentError, match="'bad'"):
        emitter.emit({"event": {"action": "bad"}, "x": object()}, None, "t")
    assert emitter.emit({"event": {"action": "good"}}, None, "t")
    batch = box.take(0.0, force=True)
    assert batch is not None
    assert batch.dropped == [(1, 1, "unencodable")]
    assert json.loads(batch.data)["event"] == {"module": "w", "action": "good", "sequence": 2}


def test_the_priority_follows_from_the_kind_unless_given():
    box = Outbox(10_000, lambda: None)
    emitter = Emitter(box, "w")
    for kind in ("alert", "state", "metric", "event", "signal", None, ["x"]):
        emitter.emit({"event": {"kind": kind}}, None, "t")
    emitter.emit({"event": {"kind": "metric"}}, "alert", "t")
    assert box.emitted() == {"alert": 2, "state": 1, "metric": 1, "event": 4}
    with pytest.raises(ValueError, match="no priority 'loud'"):
        emitter.emit({"event": {}}, "loud", "t")  # type: ignore[arg-type]


def test_what_a_module_filled_in_itself_stays_apart_from_the_sequence():
    box = Outbox(10_000, lambda: None)
    event = {"@timestamp": "mine", "event": {"module": "m", "sequence": 99}}
    Emitter(box, "w").emit(event, None, "t")
    batch = box.take(0.0, force=True)
    assert batch is not None
    assert json.loads(batch.data) == {"@timestamp": "mine", "event": {"module": "m", "sequence": 1}}
    assert event["event"] == {"module": "m", "sequence": 99}


@given(any_text, st.integers(10, 100))
def test_printable_text_is_one_short_line_of_utf8(text, limit):
    line = printable(text, limit)
    assert len(line.encode()) <= limit
    assert line.isprintable() or not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)
    assert len(line.splitlines()) <= 1


@given(documents)
def test_sanitised_documents_can_be_encoded(document):
    msgspec.msgpack.encode(sanitise([document]) if not _large(document) else 0)


def _large(document: object) -> bool:
    if isinstance(document, int):
        return not -(2**63) <= document < 2**64
    if isinstance(document, list):
        return any(map(_large, document))
    return isinstance(document, dict) and any(map(_large, document.values()))


def test_log_lines_are_limited_in_rate_and_the_rest_is_counted():
    notices = Notices(lambda: None)
    log = PipeLogger(notices, LevelFilter(), "m")
    for number in range(500):
        log.info("line %d", number)
    sent = 0
    while notices.take() is not None:
        sent += 1
    assert 45 <= sent <= 100
    assert log._suppressed == 500 - sent


def test_log_lines_never_take_more_than_their_bytes():
    notices = Notices(lambda: None)
    for number in range(20):
        log = PipeLogger(notices, LevelFilter(), f"m{number}")
        for _ in range(10):
            log.info("x" * 10_000)
    assert 0 < notices._log_bytes <= LOG_BYTES


def test_levels_below_the_set_one_are_not_sent():
    notices = Notices(lambda: None)
    levels = LevelFilter("warning")
    log = PipeLogger(notices, levels)
    log.notice("no")
    assert notices.empty
    levels.set("debug")
    log.debug("yes")
    assert not notices.empty


def test_an_exception_is_described_in_one_bounded_line_with_its_last_frames_and_cause():
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("bottom\nforged")

    try:
        try:
            deep(20)
        except ValueError as error:
            raise RuntimeError("top") from error
    except RuntimeError as error:
        line = printable(trace(error), MESSAGE_BYTES)
    assert line.startswith("RuntimeError: top at ")
    assert "caused by ValueError: bottom\\nforged" in line
    assert "\n" not in line
    assert line.count(" in deep") == 8


def test_an_exception_whose_text_fails_is_described_by_its_type():
    class NastyError(Exception):
        def __str__(self) -> str:
            raise KeyError("x")

    assert describe(NastyError()) == "NastyError: (no text: KeyError)"


@given(st.floats(0, 4e9))
def test_timestamps_have_milliseconds_and_utc(seconds):
    text = iso8601(seconds)
    assert len(text) == 24
    assert text.endswith("Z")


def test_a_known_timestamp():
    assert iso8601(1767323045.678) == "2026-01-02T03:04:05.678Z"
    assert CoarseClock().timestamp().endswith("Z")
