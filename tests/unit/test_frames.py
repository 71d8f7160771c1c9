"""Frames: what goes in comes out, and no garbage gets further than a ProtocolError."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc import frames, messages
from garrison.ipc.frames import MAX_UP_BYTES, FrameReader, FrameTooLargeError, ProtocolError

payloads = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(-5, 5), st.text(max_size=8), st.binary(max_size=8))
)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=8), payloads), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[str, dict]], data: st.DataObject
) -> None:
    stream = b"".join(frames.encode(kind, payload, limit=MAX_UP_BYTES) for kind, payload in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = FrameReader(MAX_UP_BYTES)
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [(kind, msgpack.unpackb(payload)) for kind, payload in reader.feed(stream[start:end])]
    assert got == sent
    assert reader.pending_bytes == 0


def test_a_frame_is_what_an_independent_msgpack_says_it_is() -> None:
    frame = frames.encode("beat", messages.Beat(emitted={"alert": 3}, queued=2), limit=MAX_UP_BYTES)
    (length,) = struct.unpack(">I", frame[:4])
    kind, payload = msgpack.unpackb(frame[4:])
    assert length == len(frame) - 4
    assert (kind, payload["emitted"], payload["queued"]) == ("beat", {"alert": 3}, 2)


def test_a_frame_written_by_an_independent_msgpack_is_understood() -> None:
    body = msgpack.packb(["events", {"priority": "event", "first": 1, "count": 1, "data": b"{}\n"}])
    [(kind, payload)] = FrameReader(MAX_UP_BYTES).feed(struct.pack(">I", len(body)) + body)
    assert messages.decode_up(kind, payload) == messages.Events(priority="event", first=1, count=1, data=b"{}\n")


@pytest.mark.parametrize("length", [0, MAX_UP_BYTES + 1, 2**32 - 1])
def test_an_impossible_length_is_refused_after_four_bytes(length: int) -> None:
    with pytest.raises(ProtocolError, match="announced"):
        list(FrameReader(MAX_UP_BYTES).feed(struct.pack(">I", length)))


def test_a_body_over_the_limit_is_not_encoded() -> None:
    with pytest.raises(FrameTooLargeError, match="over the limit"):
        frames.encode("log", {"message": "x" * 200}, limit=100)


@given(st.binary(max_size=300))
def test_garbage_yields_frames_or_a_protocol_error_and_nothing_else(garbage: bytes) -> None:
    reader = FrameReader(1024)
    try:
        for kind, payload in reader.feed(garbage):
            messages.decode_up(kind, payload)
    except ProtocolError:
        pass
    assert reader.pending_bytes <= len(garbage)


@given(
    st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary()), st.lists, max_leaves=20),
    st.sampled_from(["ready", "beat", "events", "log", "applied", "result", "config", "?"]),
)
def test_any_msgpack_payload_is_a_message_or_a_protocol_error(payload: object, kind: str) -> None:
    try:
        body = msgpack.packb([kind, payload])
    except OverflowError:
        return
    for decode in (messages.decode_up, messages.decode_down):
        try:
            [(got, raw)] = FrameReader(2**20).feed(struct.pack(">I", len(body)) + body)
            decode(got, raw)
        except ProtocolError:
            continue


def test_deep_nesting_is_a_protocol_error_and_no_crash() -> None:
    body = b"\x92\xa6result" + b"\x91" * 60_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        for kind, payload in FrameReader(MAX_UP_BYTES).feed(struct.pack(">I", len(body)) + body):
            messages.decode_up(kind, payload)


def test_good_frames_ahead_of_a_bad_one_are_delivered_first() -> None:
    good = frames.encode("ready", messages.Ready(), limit=MAX_UP_BYTES)
    got = []
    with pytest.raises(ProtocolError):
        for kind, _ in FrameReader(MAX_UP_BYTES).feed(good + good + b"\0\0\0\0"):
            got.append(kind)
    assert got == ["ready", "ready"]
