"""The checksum and the compression of batches: the same bytes for less CPU."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.sinks.kafka import economy
from garrison.supervisor.sinks.kafka.economy import crc32c

crc = pytest.importorskip("kafka.record._crc32c").crc

VECTORS = {
    b"": 0,
    b"123456789": 0xE3069283,
    bytes(32): 0x8A9136AA,
    b"\xff" * 32: 0x62A8AB43,
    bytes(range(32)): 0x46DD794E,
}
"""RFC 3720, B.4, read as numbers."""


@pytest.mark.parametrize("data", VECTORS, ids=lambda data: data[:4].hex() or "empty")
def test_it_is_the_checksum_of_the_standard(data: bytes) -> None:
    assert crc32c(data) == VECTORS[data]


@given(st.binary(max_size=600), st.integers(1, 60))
def test_long_data_that_is_folded_has_the_checksum_of_a_loop_over_its_bytes(data: bytes, times: int) -> None:
    assert crc32c(data * times) == crc(data * times)


@pytest.mark.parametrize("around", [847, 1694, 3388, 6777, 13554])
def test_every_length_around_a_fold_has_it_too(around: int) -> None:
    data = bytes(number * number % 251 for number in range(around + 10))
    for size in range(around - 10, around + 10):
        assert crc32c(memoryview(data)[:size]) == crc(data[:size]), size


@given(st.binary(max_size=2000))
def test_what_gzip_makes_can_be_read_by_anybody(data: bytes) -> None:
    assert gzip.decompress(economy.gzip_encode(data)) == data


def test_the_library_takes_both_and_reads_its_own_batches() -> None:
    from kafka.record import default_records, util
    from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder

    before = default_records.calc_crc32c, default_records.gzip_encode
    try:
        economy.install()
        economy.install()
        assert default_records.gzip_encode is economy.gzip_encode
        assert (default_records.calc_crc32c is crc32c) == (util.crc32c_c is None)
        builder = MemoryRecordsBuilder(2, default_records.DefaultRecordBatch.CODEC_GZIP, 1 << 20)
        for number in range(500):
            builder.append(number, b"host", b"event %d" % (number * 7919), [("count", b"1")])
        builder.close()
        written = bytes(builder.buffer())
    finally:
        default_records.calc_crc32c, default_records.gzip_encode = before
    (batch,) = MemoryRecords(written)
    assert batch.validate_crc()
    assert [record.value for record in batch] == [b"event %d" % (number * 7919) for number in range(500)]
