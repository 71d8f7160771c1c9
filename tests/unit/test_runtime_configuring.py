"""Configuration checks, changes on offer, restarts, results and loading: the parts that need no process."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.ipc.messages import Task
from garrison.workers.runtime.catcher import Restarts
from garrison.workers.runtime.configuring import check, check_one
from garrison.workers.runtime.loader import ModuleLoadError, builtins, load, load_all
from garrison.workers.runtime.mailbox import MAX_TASKS, Change, Mailbox
from garrison.workers.runtime.module import ConfigError, Module


class Rule(msgspec.Struct, forbid_unknown_fields=True):
    match: str = ""


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    depth: Annotated[int, msgspec.Meta(ge=1, le=9)] = 3


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    greeting: str = "hello"
    limits: Limits | None = None
    rules: list[Rule] = []
    named: dict[str, Rule] = {}
    ports: dict[int, str] = {}


class Configured(Module):
    Config = Settings


class Plain(Module):
    pass


ONE: dict[str, type[Module]] = {"one": Configured}
TWO: dict[str, type[Module]] = {"one": Configured, "two": Plain}


def refusal(table: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_one("one", Configured, table)
    return str(caught.value)


def test_only_changed_fields_need_be_given():
    assert check(ONE, ["one"], {"greeting": "x"})["one"] == Settings(greeting="x")


def test_several_modules_have_a_table_each_and_may_be_left_out():
    checked = check(TWO, ["one", "two"], {"one": {"limits": {"depth": 4}}})
    assert checked["one"].limits == Limits(depth=4)
    assert checked["two"] == Plain.Config()


def test_a_table_for_a_module_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'tow'.*did you mean two\?"):
        check(TWO, ["one", "two"], {"tow": {}})


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"greting": 1}, "module one: there is no field greting; did you mean greeting?"),
        ({"limits": {"dept": 1}}, "module one: there is no field limits.dept; did you mean depth?"),
        ({"rules": [{}, {"mach": 1}]}, "module one: there is no field rules[1].mach; did you mean match?"),
        ({"named": {"a": {"mach": 1}}}, "module one: there is no field named[...].mach; did you mean match?"),
        ({"limits": {"zzz": 1}}, "module one: there is no field limits.zzz; there are depth"),
        ({"greeting": 1}, "module one: field greeting: expected `str`, got `int`"),
        ({"limits": {"depth": 10}}, "module one: field limits.depth: expected `int` <= 9"),
        ({"ports": {"x": "y"}}, "module one: field ports: a key of it: Expected `int`, got `str`"),
        ([], "module one: expected `object`, got `array`"),
    ],
)
def test_a_refusal_names_module_field_and_fault(table, text):
    message = refusal(table)
    if "a key of it" in text:
        assert message.lower() == text.lower()
    else:
        assert message == text


def test_a_module_without_settings_says_so():
    with pytest.raises(ConfigError, match="there is no field x; it has no fields"):
        check_one("two", Plain, {"x": 1})


def test_a_check_of_the_modules_own_that_raises_is_a_refusal():
    class Odd(msgspec.Struct):
        def __post_init__(self) -> None:
            raise KeyError("odd")

    class OddModule(Module):
        Config = Odd

    with pytest.raises(ConfigError, match="KeyError"):
        check_one("odd", OddModule, {})


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.integers() | st.text(max_size=3), st.lists, max_leaves=3)))
def test_any_table_is_taken_or_refused_with_a_reason(table: dict[str, Any]):
    try:
        checked = check_one("one", Configured, table)
    except ConfigError as error:
        checked = error
    assert isinstance(checked, Settings) or str(checked).startswith("module one: ")


def test_a_change_is_settled_once():
    settled: list[int] = []
    change = Change(1, 0, lambda: settled.append(1))
    assert change.commit()
    assert not change.withdraw()
    change.refuse("late")
    assert change.outcome == "committed"
    assert settled == [1]


def test_a_withdrawn_change_is_not_taken_and_cannot_be_committed():
    mailbox = Mailbox()
    change = Change(1, 0, lambda: None)
    mailbox.offer(change)
    assert mailbox.has_change
    assert change.withdraw()
    assert not mailbox.has_change
    assert mailbox.take_change() is None
    assert not change.commit()
    mailbox.wakeup.close()


def test_the_task_queue_is_bounded():
    mailbox = Mailbox()
    assert [mailbox.add_task(Task(id=str(n), task="t")) for n in range(MAX_TASKS + 1)] == [True] * MAX_TASKS + [False]
    mailbox.wakeup.close()


def test_restarts_wait_longer_each_time_up_to_a_minute_and_forget_after_a_stable_one():
    policy = Restarts(("h", "w", "m"))
    waits = [policy.failed(0.1) for _ in range(12)]
    for number, wait in enumerate(waits):
        whole = min(60.0, 2.0**number)
        assert whole / 2 <= wait <= whole
    assert policy.failed(60.0) <= 1.0
    assert 1.0 <= policy.failed(59.0) <= 2.0


@pytest.fixture
def module_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text("from garrison.workers.runtime.module import Module\nclass Mine(Module):\n    pass\nvalue = 1\n")
    path.chmod(0o600)
    return path


def test_a_module_is_loaded_from_a_file(module_file):
    kind = load("mine", f"{module_file}:Mine")
    assert issubclass(kind, Module)
    assert load("mine", f"{module_file}:Mine") is kind
    assert not (module_file.parent / "__pycache__").exists()
    del sys.modules[kind.__module__]


def test_a_module_is_loaded_from_a_package():
    assert load("base", "garrison.workers.runtime.module:Module") is Module


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(module_file, mode):
    module_file.chmod(mode)
    with pytest.raises(ModuleLoadError, match=r"writable by its group or by everybody.*chmod"):
        load("mine", f"{module_file}:Mine")


def test_a_file_in_a_directory_that_others_can_write_is_refused(module_file):
    module_file.parent.chmod(0o777)
    with pytest.raises(ModuleLoadError, match="writable"):
        load("mine", f"{module_file}:Mine")
    module_file.parent.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(module_file):
    os.chown(module_file, 12345, -1)
    with pytest.raises(ModuleLoadError, match=r"belongs to uid 12345.*chown"):
        load("mine", f"{module_file}:Mine")


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nonsense", "no built-in module 'nonsense'"),
        ("relative/file.py:X", "absolute path"),
        ("/no/such/file.py:X", "No such file"),
        ("/proc:X", "no regular file"),
        ("no.such.package:X", "importing no.such.package failed"),
        ("garrison.workers.runtime.module:Missing", "no Missing in"),
        ("garrison.workers.runtime.module:NoConfig", "no class derived from"),
        (":X", "neither"),
        ("package:not-a-name", "neither"),
    ],
)
def test_a_spec_that_leads_nowhere_is_refused_with_the_reason(spec, text):
    with pytest.raises(ModuleLoadError, match=text) as caught:
        load("mine", spec)
    assert str(caught.value).startswith("module mine: ")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('capabilities = ("CAP_NET_RAW",)', "its capabilities are"),
        ('capabilities = ("everything",)', "its capabilities are"),
        ('capabilities = ("net_raw")', "a tuple of names"),
        ("capabilities = (1,)", "a tuple of names"),
        ('system_calls = "some"', "there are any, usual, observe"),
        ("system_calls = None", "there are any, usual, observe"),
    ],
)
def test_a_module_that_declares_rights_that_do_not_exist_is_refused(tmp_path, line, text):
    path = tmp_path / "greedy.py"
    path.write_text(f"from garrison.workers.runtime.module import Module\nclass Greedy(Module):\n    {line}\n")
    path.chmod(0o600)
    before = set(sys.modules)
    with pytest.raises(ModuleLoadError, match=text):
        load("greedy", f"{path}:Greedy")
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("body", ["raise SystemExit(1)", "1/0", "def broken(:", "import nothing_like_this"])
def test_a_file_that_fails_when_imported_is_refused_and_leaves_nothing(tmp_path, body):
    path = tmp_path / "bad.py"
    path.write_text(body)
    path.chmod(0o600)
    before = set(sys.modules)
    with pytest.raises(ModuleLoadError, match="importing"):
        load("mine", f"{path}:X")
    assert not {name for name in set(sys.modules) - before if name.startswith("garrison_module")}


def test_one_failure_does_not_keep_the_others(module_file):
    kinds, failures = load_all([("mine", f"{module_file}:Mine"), ("bad", "nonsense")])
    assert list(kinds) == ["mine"]
    assert list(failures) == ["bad"]
    del sys.modules[kinds["mine"].__module__]


def test_the_builtins_are_listed():
    assert "process" in builtins()


def test_a_change_settles_once_even_when_both_sides_race():
    for _ in range(200):
        change = Change(1, 0, lambda: None)
        results: list[bool] = []
        thread = threading.Thread(target=lambda c=change, r=results: r.append(c.commit()))
        thread.start()
        withdrawn = change.withdraw()
        thread.join()
        assert results == [not withdrawn]
