"""How events stand in the spool, and how its bound is shared out."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.spool import room
from garrison.supervisor.spool.packing import MAX_RAW_BYTES, pack, unpack


@given(st.binary(max_size=3000), st.integers(1, 50))
def test_what_was_packed_comes_back(piece: bytes, times: int) -> None:
    data = piece * times
    assert unpack(*pack(data)) == data


def test_events_are_kept_compressed_and_what_does_not_shrink_is_not() -> None:
    line = b'{"event":{"action":"exec"},"host":{"name":"web1"},"agent":{"worker":"process"}}\n'
    assert len(pack(line * 100)[2]) < len(line) * 20
    assert pack(line) == (0, zlib.crc32(line), line)
    noise = os.urandom(4000)
    assert pack(noise)[2] == noise


@given(st.binary(min_size=600, max_size=2000), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_noticed(data: bytes, where: int, value: int) -> None:
    raw, checksum, kept = pack(data)
    at = where % len(kept)
    changed = kept[:at] + bytes([value]) + kept[at + 1 :]
    assert unpack(raw, checksum, changed) == (data if changed == kept else None)


@pytest.mark.parametrize("raw", [-1, MAX_RAW_BYTES + 1, None, "9", 5])
def test_a_length_that_is_not_its_own_is_refused_before_it_costs_memory(raw: object) -> None:
    kept = zlib.compress(bytes(20 * 1024 * 1024), 9)
    assert unpack(raw, zlib.crc32(kept), kept) is None


@given(st.integers(room.MIN_BYTES, 2**40))
def test_database_and_log_together_keep_the_bound(max_bytes: int) -> None:
    shares = room.share(max_bytes)
    assert shares.pages * room.PAGE_BYTES + shares.log_bytes <= max_bytes
    # A transaction, with what the tree and the list of free pages add, fits into the log behind a checkpoint.
    assert shares.checkpoint_pages * room.PAGE_BYTES + 2 * shares.transaction_bytes <= shares.log_bytes
    assert shares.pages * room.PAGE_BYTES >= max_bytes // 2


@given(st.integers(1, 10_000_000))
def test_the_pages_of_a_row_are_not_underestimated(size: int) -> None:
    assert room.pages_for(size) * room.PAGE_BYTES >= size
