"""Text for people: units that read well, and nothing that can steer a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.cli import text


@given(st.text(st.characters()))
def test_nothing_that_steers_a_terminal_is_left(raw: str) -> None:
    clean = text.sanitise(raw)
    assert not [c for c in clean if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(clean) & set("\u202a\u202e\u2066\u2069\u200b\u200f\ufeff")


@given(st.text(st.characters(), max_size=50))
def test_line_breaks_are_kept_only_where_asked(raw: str) -> None:
    assert "\n" not in text.sanitise(raw)
    assert text.sanitise(raw, newlines=True).count("\n") == raw.count("\n")


def test_an_escape_sequence_becomes_visible() -> None:
    assert text.sanitise("\x1b]0;pwned\x07\x9b2J\u202etxt") == "\\x1b]0;pwned\\x07\\x9b2J\\u202etxt"


def test_ordinary_text_stays_as_it_is() -> None:
    assert text.sanitise("Grüße, 世界 €") == "Grüße, 世界 €"


@given(st.text(max_size=40), st.integers(1, 20))
def test_a_limit_is_kept_and_shown(raw: str, limit: int) -> None:
    cut = text.sanitise("".join(c for c in raw if c.isalnum()), limit=limit)
    assert len(cut) <= limit


@given(st.recursive(st.text(st.characters(exclude_categories=("Cs",))), lambda s: st.dictionaries(st.text(), s)))
def test_json_for_programs_means_the_same_and_is_harmless(document: object) -> None:
    safe = text.safe_json(json.dumps(document, ensure_ascii=False))
    assert json.loads(safe) == document
    assert text.sanitise(safe) == safe


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (512, "512"), (1023, "1023"), (1024, "1K"), (35757056, "34.1M"), (96 * 2**20, "96M"), (2**40, "1T")],
)
def test_bytes_are_short(count: int, shown: str) -> None:
    assert text.size(count) == shown


@given(st.integers(0, 2**50))
def test_bytes_are_never_wider_than_six(count: int) -> None:
    assert len(text.size(count)) <= 6


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7260, "2 h 1 min"),
        (187200, "2 d 4 h"),
        (-5, "0 s"),
    ],
)
def test_durations_name_the_two_units_that_matter(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_numbers_are_grouped_and_counted() -> None:
    assert text.count(1234567) == "1 234 567"
    assert (text.plural(1, "process", "processes"), text.plural(2, "trip")) == ("1 process", "2 trips")
    assert (text.percent(10.0), text.percent(1.25)) == ("10", "1.2")
