from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.settings import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("64MiB", 64 * 2**20),
        ("1 GiB", 2**30),
        ("500kB", 500_000),
        ("1.5 KiB", 1536),
        ("7", 7),
        ("7b", 7),
        ("2 tib", 2**41),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, count: int) -> None:
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "MiB", "-1 MiB", "1 2 MiB", "1e3", "0x10", "٣ MiB", "1.MiB", "9" * 40, "1 PiB"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="64 MiB"):
        units.parse_bytes(text)


@pytest.mark.parametrize("text", ["64M", "64k", "1 G"])
def test_a_bare_letter_is_refused_because_it_means_two_things(text: str) -> None:
    with pytest.raises(ValueError, match=r"ambiguous.*iB \(1024\) or .B \(1000\)"):
        units.parse_bytes(text)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_formatted_size_reads_back_as_itself(count: int) -> None:
    assert units.parse_bytes(units.format_bytes(count)) == count


@pytest.mark.parametrize(
    ("text", "seconds"), [("250ms", 0.25), ("5s", 5.0), ("2m", 120.0), ("1h", 3600.0), ("1.5 min", 90.0), ("3", 3.0)]
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert units.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 days", "1m30s", "inf", "nan"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="250ms"):
        units.parse_seconds(text)
