from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings import Budget, Settings, Worker, load
from garrison.supervisor.settings.document import EXAMPLE, main, page
from garrison.supervisor.settings.fields import Setting, settings_of
from garrison.supervisor.settings.load import loads
from garrison.supervisor.settings.places import Surroundings
from garrison.supervisor.settings.render import to_toml
from garrison.supervisor.settings.schema import Agent

HERE = Surroundings(root=True, hostname="db7", home="/root", environ={})
ROOT = Path(__file__).parents[2]


def every_setting(struct: type[msgspec.Struct] = Settings) -> list[Setting]:
    found = []
    for setting in settings_of(struct).values():
        inner = setting.shape.table or setting.shape.tables
        found += every_setting(inner) if inner else [setting]
    return found


def test_the_page_is_that_of_the_schema() -> None:
    assert main(["--check", str(ROOT / "docs" / "configuration.md")]) == 0


def test_a_page_out_of_date_is_reported_with_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(page().replace("`256 MiB`", "`255 MiB`"))
    assert main(["--check", str(path)]) == 1
    text = capsys.readouterr().err
    assert "256 MiB" in text
    assert "make docs" in text
    assert main([str(path)]) == 0
    assert main(["--check", str(path)]) == 0


def test_a_missing_page_is_out_of_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(tmp_path / "none.md")]) == 1
    assert "more lines" in capsys.readouterr().err


def test_the_example_on_the_page_is_a_good_configuration() -> None:
    settings = loads(EXAMPLE.encode(), "example", HERE)
    assert set(settings.workers) == {"process", "inventory", "probe"}
    assert settings.warnings == ()
    assert EXAMPLE in page()


def test_every_setting_is_explained_and_every_number_has_a_range() -> None:
    for setting in every_setting():
        assert setting.shape.description, setting.name
        if setting.shape.bare in (int, float):
            assert setting.shape.ge is not None, setting.name
            assert setting.shape.le is not None, setting.name
            assert setting.shape.ge <= setting.default <= setting.shape.le, setting.name
        elif get_origin(setting.shape.bare) in (tuple, dict) and setting.name != "settings":
            assert setting.shape.max_length, setting.name


def test_loaded_settings_pass_the_schemas_own_ranges() -> None:
    settings = loads(EXAMPLE.encode(), "example", HERE)
    assert msgspec.convert(msgspec.to_builtins(settings), Settings) == settings


def test_printed_settings_load_as_the_same_ones() -> None:
    for document in ("", EXAMPLE, "[workers]", '[workers.process.settings]\n"a b" = { c = ["\\u0007", 1.5, true] }'):
        settings = loads(document.encode(), "f", HERE)
        again = loads(to_toml(settings).encode(), "f", HERE)
        assert again == settings


_plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), _plain, max_size=4),
    st.integers(4 * 2**20, 96 * 2**20),
    st.floats(0.5, 10),
)
def test_any_settings_survive_being_printed(free: dict[str, Any], memory: int, percent: float) -> None:
    budget = Budget(memory_high=memory, cpu_trip_percent=percent)
    worker = Worker(modules=("a.b:C",), settings=free, budget=budget)
    settings = Settings(agent=Agent(hostname="h"), workers={"w": worker})
    again = loads(to_toml(settings).encode(), "f", HERE)
    assert again.workers == settings.workers


def test_the_source_and_the_warnings_stand_in_front_and_cannot_break_the_document() -> None:
    settings = msgspec.structs.replace(load(here=HERE), source="/x\n[agent]", warnings=("careful\nb = 1",))
    text = to_toml(settings)
    assert text.startswith("# Effective settings of garrisond, read from /x\\n[agent].\n# warning: careful\\nb = 1\n")
    loads(text.encode(), "f", HERE)


def test_exit_codes_are_those_of_sysexits_and_explained() -> None:
    assert [int(code) for code in ExitCode] == [0, 64, 69, 71, 75, 78]
    assert all(code.meaning and code.remedy for code in ExitCode)


def test_importing_the_settings_stays_lean() -> None:
    script = "import sys, garrison.supervisor.settings; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.main()\n" + script], capture_output=True, text=True
    )
    loaded = set(done.stdout.split())
    assert "garrison.supervisor.settings.load" in loaded
    assert loaded.isdisjoint(
        {"difflib", "tomllib", "logging", "asyncio", "argparse", "garrison.supervisor.settings.document"}
    )
