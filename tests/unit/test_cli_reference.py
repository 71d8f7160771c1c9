"""The reference page says what the commands say."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.fleet.cli import exits, reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert reference.renewed(page) == page, "run: python -m garrison.fleet.cli.reference docs/cli.md"


def test_every_command_and_exit_code_is_on_it() -> None:
    part = reference.document()
    for name in (
        "status",
        "start",
        "stop",
        "freeze",
        "thaw",
        "reset",
        "kill",
        "release",
        "events",
        "doctor",
        "version",
    ):
        assert f"## garrison {name}\n" in part
    for code in exits.MEANINGS:
        assert f"| {code} |" in part


def test_a_page_without_the_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="no part"):
        reference.renewed("# nothing")
