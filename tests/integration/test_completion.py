"""bash, zsh and fish, as they are installed, complete the command lines with what the packages bring them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.fleet.manual.__main__ import install
from garrison.fleet.manual.bash import all_names
from garrison.fleet.manual.commandline import Command, Kind, master, operator
from garrison.supervisor.control.status import WorkerStatus
from tests import shells
from tests.integration import _shell_support as support
from tests.integration._control_support import Answers, serving
from tests.unit._cli_reports import healthy, troubled

Offered = Callable[[str], set[str]]
WORKERS = {"process", "network", "files", "login"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    install(folder, {})
    return folder / "usr/share"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    for name in ("folder", "config", "data"):
        (folder / name).mkdir()
    (folder / "file.toml").touch()
    return folder


@pytest.fixture(scope="module", params=["bash", "zsh", "fish"])
def offered(request: pytest.FixtureRequest, root: Path, home: Path) -> Iterator[Offered]:
    """A function that says what a shell offers for a line; every shell stays for all tests of this file."""
    name = request.param
    if shells.find(name) is None:
        pytest.skip(shells.missing(name))
    if name == "fish":
        yield lambda line: {word.removesuffix("/") for word in support.fish(home, root, line)}
        return
    with (
        support.bash(home, root / "bash-completion/completions/garrison")
        if name == "bash"
        else support.zsh(home, root / "zsh/vendor-completions")
    ) as shell:
        yield lambda line: {word.removesuffix("/") for word in shell.offered(line)}


def every_command() -> list[Command]:
    return list(operator().below)


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.path or "garrison")
def test_all_of_a_commands_options_and_commands_are_offered(offered: Offered, command: Command) -> None:
    line = f"garrison {command.path} ".replace("  ", " ")
    assert offered(f"{line}-") == set(all_names(command))
    if command.commands:
        assert offered(line) == {each.name for each in command.commands}


def test_an_option_in_front_of_the_command_changes_nothing(offered: Offered) -> None:
    assert offered("garrison --config stop fleet ") == {"init", "hosts"}
    assert offered("garrison -c file.toml --socket=/x fleet h") == {"hosts"}


def test_the_words_that_an_option_takes_are_offered(offered: Offered) -> None:
    assert offered("garrison events --kind ") == {"alert", "state", "event", "metric"}
    assert offered("garrison fleet hosts --trouble --state k") == {"killed"}
    assert offered("garrison logs --level=em") == {"--level=emerg"}


def test_files_and_folders_are_offered_where_they_belong(offered: Offered) -> None:
    assert offered("garrison --config f") == {"file.toml", "folder"}
    assert offered("garrison fleet init f") == {"folder"}
    assert offered("garrison fleet init --endpoints 10.0.0.1:2379,10.0.0.2:2379 f") == {"folder"}
    assert offered("garrison fleet init --ca-cert f") == {"file.toml", "folder"}


def test_nothing_but_options_is_offered_where_only_the_user_knows(offered: Offered) -> None:
    for line in ("garrison kill --reason ", "garrison kill ", "garrison logs --lines ", "garrison fleet hosts --page "):
        assert all(word.startswith("-") for word in offered(line)), line


def test_the_agents_workers_are_offered(offered: Offered, tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with serving(path, Answers(status=troubled())):
        assert offered(f"garrison --socket {path} stop ") == WORKERS
        assert offered(f"garrison --socket={path} history n") == {"network"}
        assert offered(f"garrison --socket {path} start process f") == {"files"}
        assert offered(f"garrison --socket {path} events --worker l") == {"login"}


def test_without_an_agent_no_worker_is_offered(offered: Offered, tmp_path: Path) -> None:
    assert offered(f"garrison --socket {tmp_path}/none stop ") == set()


def test_an_agent_that_does_not_answer_is_not_waited_for(offered: Offered, tmp_path: Path) -> None:
    path = str(tmp_path / "control.sock")
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(path)
        hanging.listen()
        assert offered(f"garrison --socket {path} stop ") == set()


def test_a_hostile_agent_cannot_make_the_shell_run_anything(offered: Offered, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    names = [f"$(touch {trap})", f"`touch {trap}`", f"x;touch {trap}", "a b", "--wait", "x\ny", "x\x1b[2J", "process\n"]
    report = healthy()
    report.workers += [WorkerStatus(name=name) for name in names]
    path = str(tmp_path / "control.sock")
    with serving(path, Answers(status=report)):
        assert offered(f"garrison --socket {path} stop ") == {"process"}
    assert not trap.exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_masters_options_are_offered(shell: str, root: Path, home: Path) -> None:
    if shells.find(shell) is None:
        pytest.skip(shells.missing(shell))
    line, names = "garrisond -", set(all_names(master()))
    if shell == "fish":
        assert set(support.fish(home, root, line)) == names
        assert "file.toml" in support.fish(home, root, "garrisond --config ")
        return
    with (
        support.bash(home, root / "bash-completion/completions/garrisond")
        if shell == "bash"
        else support.zsh(home, root / "zsh/site-functions")
    ) as opened:
        assert set(opened.offered(line)) == names
        assert "file.toml" in opened.offered("garrisond --config ")
        assert opened.offered("garrisond --check --pr") == ["--print-config"]


def test_bash_completion_finds_it_by_itself_and_behind_sudo(root: Path, home: Path) -> None:
    loader = shells.bash_completion()
    if loader is None:
        pytest.skip(shells.missing("bash-completion"))
    with support.bash(home, loader, XDG_DATA_DIRS=f"{root}:{loader.parent.parent}") as shell:
        assert shell.offered("garrison fl") == ["fleet"]
        assert shell.offered("sudo garrison logs --level=em") == ["--level=emerg"]


def test_fish_explains_what_it_offers(root: Path, home: Path) -> None:
    if shells.find("fish") is None:
        pytest.skip(shells.missing("fish"))
    assert support.fish(home, root, "garrison rel") == {"release": "Take back `garrison kill`"}
    assert support.fish(home, root, "garrison start --no")["--no-wait"] == "The opposite of --wait."


def test_something_is_asked_of_every_kind() -> None:
    used = {option.value.kind for command in every_command() for option in command.options if option.value}
    used |= {argument.value.kind for command in every_command() for argument in command.arguments}
    assert used == set(Kind)
