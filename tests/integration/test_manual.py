"""The manual pages pass the judges of both formatters, and show what they should on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from garrison.fleet.manual.__main__ import install
from garrison.fleet.manual.commandline import operator
from garrison.supervisor.settings import document
from tests import shells

PAGES = ("man1/garrison.1.gz", "man5/garrison.toml.5.gz", "man8/garrisond.8.gz")
needs_man = pytest.mark.skipif(shutil.which("man") is None, reason="needs man (apt-get install man-db)")


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    install(folder, {"SOURCE_DATE_EPOCH": "1700000000"})
    return folder / "usr/share/man"


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAN", "GROFF", "LC_"))}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=kept | {"LC_ALL": "C.UTF-8"} | env)


def shown(page: Path, columns: int) -> str:
    done = run("man", "--warnings", "-l", page, MANWIDTH=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub("(?:\x1b\\[[0-9;]*m|.\x08)", "", done.stdout)


@pytest.mark.parametrize("page", PAGES)
def test_mandoc_has_nothing_to_complain_about(manual: Path, page: str) -> None:
    program = shells.find("mandoc")
    if program is None:
        pytest.skip(shells.missing("mandoc"))
    done = run(program, "-T", "lint", "-W", "style", manual / page, **shells.environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_man
@pytest.mark.parametrize("columns", [80, 160])
@pytest.mark.parametrize("page", PAGES)
def test_man_shows_it_without_a_warning_and_in_its_width(manual: Path, page: str, columns: int) -> None:
    text = shown(manual / page, columns)
    assert "SEE ALSO" in text
    example = {line.strip() for line in document.EXAMPLE.splitlines()}
    assert [line for line in text.splitlines() if len(line) > columns and line.strip() not in example] == []


@needs_man
@pytest.mark.parametrize("page", PAGES)
def test_the_list_of_pages_finds_its_summary(manual: Path, page: str) -> None:
    done = run("lexgrog", manual / page)
    name = Path(page).stem.rpartition(".")[0]
    assert f'"{name} - ' in done.stdout, done.stdout + done.stderr


@needs_man
def test_what_is_typed_can_be_copied_from_the_page(manual: Path) -> None:
    text = shown(manual / "man1/garrison.1.gz", 160)
    for command in operator().below:
        for option in command.options:
            assert ", ".join(option.names) in text  # with the hyphens of ASCII, whatever the terminal
    example = shown(manual / "man5/garrison.toml.5.gz", 160)
    for line in filter(None, document.EXAMPLE.splitlines()):
        assert line in example


@needs_man
def test_man_finds_the_pages_by_their_names(manual: Path) -> None:
    for name, page in (("garrison", PAGES[0]), ("garrison.toml", PAGES[1]), ("garrisond", PAGES[2])):
        done = run("man", "-M", manual, "-w", name)
        assert done.stdout.strip() == str(manual / page)
