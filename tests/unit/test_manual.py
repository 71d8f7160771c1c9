"""Manual pages and completions are made from the programs, whole, and the same every time."""

from __future__ import annotations

import gzip
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.fleet.cli import exits
from garrison.fleet.manual import commandline, pages, roff
from garrison.fleet.manual.__main__ import documentation, install, main
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.main import SIGNALS
from garrison.supervisor.settings import document

DOCS = Path(__file__).parents[2] / "docs"
ASCII = frozenset(string.printable) - frozenset("\t\r\x0b\x0c")


def plain(page: str) -> str:
    """What somebody reads, near enough: without fonts, and escapes undone."""
    for escape, char in (
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\%", ""),
        ("\\-", "-"),
        ("\\&", ""),
        ("\\e", "\\"),
    ):
        page = page.replace(escape, char)
    for escape, char in (("\\(aq", "'"), ("\\(dq", '"'), ("\\(ti", "~"), ("\\(ga", "`"), ("\\(ha", "^")):
        page = page.replace(escape, char)
    return page


def a_page() -> roff.Page:
    return roff.Page("x", 1, "a thing", source="X 1", date="", origin="nothing")


def test_the_files_in_the_documentation_are_up_to_date() -> None:
    assert main(["--check", str(DOCS)]) == 0


def test_a_file_out_of_date_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--docs", str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "man/garrison.1").write_text("old")
    (tmp_path / "man/garrisond.8").unlink()
    assert main(["--check", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path}/man/garrison.1 is out of date: run `make docs`" in said
    assert f"{tmp_path}/man/garrisond.8 is out of date" in said
    assert said.count("\n") == 2


def test_the_page_of_the_command_has_every_command_option_and_exit_code() -> None:
    text = plain(pages.pages()["garrison.1"])
    for command in commandline.operator().below:
        if command.path and not command.commands:
            assert f"\n.SS garrison {command.path}" in text
        for option in command.options:
            assert ", ".join(option.names + option.off) in text
            assert not option.variable or f".TP\n{option.variable}\n" in text
    for code in exits.MEANINGS:
        assert f".TP\n{code}\n" in text


def test_the_page_of_the_master_has_every_option_signal_and_exit_code() -> None:
    text = plain(pages.pages()["garrisond.8"])
    for option in commandline.master().options:
        assert f".TP\n{', '.join(option.names)}" in text
    assert "[--check | --print-config | --cleanup]" in text.replace("\n", " ")
    for names in SIGNALS:
        assert f".TP\n{names}\n" in text
    for code in ExitCode:
        assert f".TP\n{int(code)}\n" in text


def test_the_page_of_the_configuration_has_every_table_and_setting_with_its_default() -> None:
    text = plain(pages.pages()["garrison.toml.5"])
    for section in document.sections():
        table = text.partition(f"\n.SS [{section.key}]\n")[2].partition("\n.S")[0]
        assert table, section.key
        for row in section.rows:
            assert f".TP\n{row.name}\n" in table
        assert table.count("Default:") >= len(section.rows)
    for line in document.EXAMPLE.splitlines():
        assert f"\n{line}\n" in text


def test_pages_bear_the_day_that_they_are_given() -> None:
    assert '.TH GARRISOND 8 "2026-01-31" "Garrison ' in pages.pages("2026-01-31")["garrisond.8"]


def test_a_package_gets_the_same_bytes_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        assert main(["--root", str(root)]) == 0
    found = [{path.relative_to(root): path for path in root.rglob("*") if path.is_file()} for root in roots]
    assert found[0].keys() == found[1].keys()
    for name, path in found[0].items():
        assert path.read_bytes() == found[1][name].read_bytes()
        assert path.stat().st_mode & 0o7777 == 0o644
    page = gzip.decompress((roots[0] / "usr/share/man/man1/garrison.1.gz").read_bytes()).decode()
    assert '.TH GARRISON 1 "2023-11-14"' in page


def test_red_hats_and_suses_zsh_find_the_same_files(tmp_path: Path) -> None:
    install(tmp_path, {})
    install(tmp_path, {})  # a second time changes nothing
    for name in ("_garrison", "_garrisond"):
        link = tmp_path / "usr/share/zsh/site-functions" / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.samefile(tmp_path / "usr/share/zsh/vendor-completions" / name)


def test_what_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "usr").touch()
    assert main(["--root", str(tmp_path)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert main(["--root", str(tmp_path / "other")]) == 1
    assert "yesterday" in capsys.readouterr().err


def test_a_value_of_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(commandline.KINDS, "SECONDS")
    with pytest.raises(ValueError, match=r"SECONDS is not said in .*KINDS; add it there"):
        commandline.operator()


def test_every_kind_that_is_decided_is_used() -> None:
    commands = [*commandline.operator().below, commandline.master()]
    used = {option.value.metavar for command in commands for option in command.options if option.value}
    used |= {argument.value.metavar for command in commands for argument in command.arguments}
    assert commandline.KINDS.keys() <= used


def test_words_of_an_enumeration_are_choices() -> None:
    logs = next(command for command in commandline.operator().below if command.path == "logs")
    level = next(option for option in logs.options if "--level" in option.names)
    assert level.value is not None
    assert level.value.choices[:2] == ("debug", "info")
    assert level.default == "debug"


@pytest.mark.parametrize(
    ("markdown", "shown"),
    [
        ("see `garrison status`", "see \\fB\\%garrison \\%status\\fR"),
        ("**Who may.** Root", "\\fBWho may.\\fR Root"),
        ("is *local*: here", "is \\fI\\%local\\fR: here"),
        ("with --no-tls, or -f", "with \\fB\\%\\-\\-no\\-tls\\fR, or \\fB\\-f\\fR"),
        ("a well-known one", "a well-known one"),
        ("[keys.md](keys.md#x) says", "keys.md says"),
        ("see garrison.toml(5)", "see \\fB\\%garrison.toml\\fR(5)"),
        ("a\\b ~ ^ … 'x'", "a\\eb \\(ti \\(ha \\[u2026] 'x'"),
        ("`'x' -y`", "\\fB\\(aqx\\(aq \\-y\\fR"),
        ("2 * 3 * 4 and 5*6", "2 * 3 * 4 and 5*6"),
    ],
)
def test_inline_markdown_becomes_roff(markdown: str, shown: str) -> None:
    assert roff.inline(markdown) == shown


def test_blocks_of_markdown_become_roff() -> None:
    page = a_page()
    page.section("Text")
    page.markdown("One\nparagraph.\n\nAnother.\n\n- a\n  longer\n- b\n\n1. c\n")
    page.markdown("```toml\n.x = 'y'\n```\n\nAfter.\n## Next `one`\nEnd.")
    assert page.text.partition(".SH TEXT\n")[2].splitlines() == [
        "One paragraph.", ".PP", "Another.", ".IP \\(bu 4", "a longer", ".IP \\(bu 4", "b", ".IP 1. 4", "c",
        ".PP", ".RS 4", ".EX", "\\&.x = \\(aqy\\(aq", ".EE", ".RE", ".PP", "After.", ".SH NEXT ONE", "End.",
    ]  # fmt: skip


@pytest.mark.parametrize("markdown", ["| a | b |", "### deeper", "<!-- note -->", "> quote", "```\nno end"])
def test_markdown_that_a_page_cannot_have_is_refused(markdown: str) -> None:
    with pytest.raises(ValueError, match=r"cannot have this|has no end"):
        a_page().markdown(markdown)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=200))
def test_no_text_can_become_a_request_or_leave_ascii(text: str) -> None:
    page = a_page()
    page.item(roff.bold("x"), text)
    page.example([text])
    body = page.text.partition(".TP\n")[2].splitlines()
    assert set("".join(body)) <= ASCII
    assert {line.split()[0] for line in body if line.startswith((".", "'"))} <= {".PP", ".RS", ".EX", ".EE", ".RE"}


def test_everything_is_ascii() -> None:
    for name, text in documentation().items():
        assert set(text) <= ASCII, name
