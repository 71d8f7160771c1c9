"""The `garrison` command as a process of its own, against a real control socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from garrison.supervisor.control.status import KillswitchResult, StatusReport, WorkerResult
from garrison.supervisor.version import VERSION
from tests.integration._control_support import DEADLINE, Answers, serving, worker_unknown
from tests.unit._cli_reports import KEY, healthy, troubled

Run = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "garrison.fleet.cli"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "control.sock")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return kept | {"PYTHONWARNINGS": "error"} | more


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=DEADLINE * 2, env=environment(**env)
    )


@pytest.fixture
def garrison(path: str) -> Run:
    return lambda *arguments, **env: run("--socket", path, *arguments, **env)


@contextlib.contextmanager
def on_terminal(path: str, *arguments: str, columns: int, **env: str) -> Iterator[Callable[[], tuple[str, int]]]:
    """Run the command on a pseudo-terminal of so many columns."""
    import fcntl
    import struct
    import termios

    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, "--socket", path, *arguments],
        stdin=follower, stdout=follower, stderr=follower,
        env=environment(TERM="xterm-256color", **env),
    )  # fmt: skip
    os.close(follower)

    def finish() -> tuple[str, int]:
        data = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(leader, 65536):
                data += chunk
        return data.decode(), process.wait(DEADLINE)

    try:
        yield finish
    finally:
        os.close(leader)
        if process.poll() is None:
            process.kill()
            process.wait(DEADLINE)


def test_a_healthy_status_is_printed_and_ends_with_0(path: str, garrison: Run) -> None:
    with serving(path, Answers(status=healthy())):
        done = garrison("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "web-17.example" in done.stdout
    assert "123 450" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_troubled_status_ends_with_3_and_says_why(path: str, garrison: Run) -> None:
    with serving(path, Answers(status=troubled())):
        done = garrison("status")
    assert done.returncode == 3
    assert "KILLSWITCH ENGAGED by @all, local" in done.stdout
    assert "\x1b" not in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("network "))
    assert KEY in row


def test_the_json_status_is_the_agents_document(path: str, garrison: Run) -> None:
    with serving(path, Answers(status=troubled())):
        done = garrison("status", "--json")
    assert done.returncode == 0
    assert done.stdout == msgspec.json.encode(troubled()).decode() + "\n"
    assert msgspec.json.decode(done.stdout, type=StatusReport) == troubled()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_colour_and_lines_of_its_width(path: str, columns: int) -> None:
    import re

    with serving(path, Answers(status=troubled())), on_terminal(path, "status", columns=columns) as finish:
        output, code = finish()
    assert code == 3
    assert "\x1b[" in output
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines()) <= columns
    assert "KILLSWITCH ENGAGED by @all, local" in plain


def test_no_color_is_obeyed_on_a_terminal(path: str) -> None:
    import re

    with serving(path, Answers(status=troubled())), on_terminal(path, "status", columns=80, NO_COLOR="1") as finish:
        output, _ = finish()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7])m", output)


def changed(state: str, desired: str, by: str = "local") -> Callable[[str], WorkerResult]:
    return lambda worker: WorkerResult(name=worker, state=state, desired=desired, desired_by=by)


def test_a_stop_says_what_became_of_each_worker(path: str, garrison: Run) -> None:
    answers = Answers(stop=changed("stopped", "stop"))
    with serving(path, answers):
        done = garrison("stop", "process", "network")
    assert done.returncode == 0
    assert done.stdout == (
        "process: stopped (desired stop, decided by local)\nnetwork: stopped (desired stop, decided by local)\n"
    )
    assert answers.calls == [("stop", {"worker": "process"}), ("stop", {"worker": "network"})]


def test_a_start_waits_until_the_worker_runs(path: str, garrison: Run) -> None:
    reports = iter(["starting", "starting", "running"])

    def status() -> StatusReport:
        report = healthy()
        report.workers[0].state = next(reports)
        return report

    with serving(path, Answers(start=changed("starting", "start"), status=status)):
        done = garrison("start", "process")
    assert (done.returncode, done.stdout) == (0, "process: running (desired start, decided by local)\n")


def test_no_wait_does_not_wait(path: str, garrison: Run) -> None:
    answers = Answers(start=changed("starting", "start"))
    with serving(path, answers):
        done = garrison("start", "--no-wait", "process")
    assert (done.returncode, done.stdout) == (0, "process: starting (desired start, decided by local)\n")
    assert [op for op, _ in answers.calls] == ["start"]


def test_a_worker_that_does_not_get_there_in_time_is_an_error(path: str, garrison: Run) -> None:
    report = healthy()
    report.workers[0].state = "starting"
    with serving(path, Answers(start=changed("starting", "start"), status=report)):
        done = garrison("start", "--timeout", "0.5", "process")
    assert done.returncode == 1
    assert "still starting" in done.stderr
    assert "--timeout" in done.stderr


def test_a_worker_that_fails_says_why(path: str, garrison: Run) -> None:
    report = troubled()
    with serving(path, Answers(start=changed("starting", "start"), status=report)):
        done = garrison("start", "files")
    assert done.returncode == 1
    assert "files: start was accepted, but it is failed: memory.max reads back as 0" in done.stderr
    assert "garrison doctor" in done.stderr


def test_a_start_that_the_store_overrides_names_the_key_and_ends_with_1(path: str, garrison: Run) -> None:
    with serving(path, Answers(start=changed("stopped", "stop", KEY))):
        done = garrison("start", "network")
    assert done.returncode == 1
    assert f"decided by {KEY}" in done.stderr
    assert f"set {KEY} to `start`" in done.stderr


def test_an_unknown_worker_is_named_with_the_nearest_and_the_others_have_their_turn(path: str, garrison: Run) -> None:
    def reset(worker: str) -> Any:
        return worker_unknown(worker) if worker == "netwrk" else changed("probation", "start")(worker)

    with serving(path, Answers(reset=reset)):
        done = garrison("reset", "netwrk", "process")
    assert done.returncode == 1
    assert "did you mean 'network'" in done.stderr
    assert "files, network, process" in done.stderr
    assert done.stdout.startswith("process: probation")


def test_a_kill_prints_how_long_it_took(path: str, garrison: Run) -> None:
    result = KillswitchResult(engaged=True, scopes=["local"], reason="drill", milliseconds=4.25, processes=8)
    answers = Answers(kill=lambda reason: result)
    with serving(path, answers):
        done = garrison("kill", "--reason", "drill")
    assert done.returncode == 0
    assert "killed 8 processes in 4.2 ms" in done.stdout
    assert answers.calls == [("kill", {"reason": "drill"})]


def test_a_kill_that_did_not_engage_is_an_error(path: str, garrison: Run) -> None:
    with serving(path, Answers(kill=lambda reason: KillswitchResult(engaged=False))):
        assert garrison("kill").returncode == 1


def test_a_release_ends_with_0(path: str, garrison: Run) -> None:
    with serving(path, Answers(release=KillswitchResult(engaged=False, milliseconds=0.3))):
        done = garrison("release")
    assert done.returncode == 0
    assert "released in 0.3 ms" in done.stdout


def test_a_release_that_leaves_it_engaged_names_each_source_and_its_remedy(path: str, garrison: Run) -> None:
    left = KillswitchResult(engaged=True, scopes=["@all", "file"], reason="incident 7")
    with serving(path, Answers(release=left)):
        done = garrison("release")
    assert done.returncode == 1
    assert "still engaged by @all, file (incident 7)" in done.stderr
    assert "/hids/server/config/@all/killswitch" in done.stderr
    assert "remove the file " in done.stderr


EVENT = {"@timestamp": "2026-01-02T03:04:05Z", "event": {"kind": "alert", "action": "exec\x1b[2J", "module": "process"}}


def with_events(*items: object, then: str = "end") -> Answers:
    answers = Answers()
    answers.results["events"] = lambda **args: answers.items(*items, then=then)
    return answers


def test_events_are_one_harmless_line_each(path: str, garrison: Run) -> None:
    answers = with_events(EVENT, b"not json \x1b[2J")
    with serving(path, answers):
        done = garrison("events", "-n", "5", "--kind", "alert", "--kind", "state", "--worker", "process")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "03:04:05 alert  process exec\\x1b[2J"
    assert "\x1b" not in done.stdout
    assert answers.calls == [
        ("events", {"follow": False, "last": 5, "kinds": ["alert", "state"], "workers": ["process"]})
    ]


def test_json_events_are_the_documents(path: str, garrison: Run) -> None:
    with serving(path, with_events(EVENT, msgspec.Raw(b'{"a":"\xc2\x9b"}'))):
        done = garrison("events", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [EVENT, {"a": "\x9b"}]
    assert "\x9b" not in done.stdout


def following(path: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "--socket", path, "events", "-f", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip


def test_following_ends_with_130_and_in_silence_on_ctrl_c(path: str) -> None:
    with serving(path, with_events(EVENT, then="wait")), following(path) as process:
        assert process.stdout is not None
        assert "process" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, output, errors) == (130, "", "")


def test_following_says_that_the_agent_has_ended(path: str) -> None:
    with serving(path, with_events(EVENT, then="wait")) as running, following(path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        running.close()
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 69
    assert "no more events: the agent has stopped" in errors


def test_following_reports_what_was_missed(path: str) -> None:
    from garrison.supervisor.control.protocol import Dropped

    with serving(path, with_events(EVENT, Dropped(12), EVENT, then="wait")), following(path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        assert "12 events missed here" in process.stderr.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("arguments", [["events", "-f"], ["events", "--json"], ["status"], ["doctor"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(path: str, arguments: list[str]) -> None:
    answers = with_events(*[EVENT] * 5000)
    answers.results["status"] = healthy()
    with serving(path, answers):
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.run(
            [*COMMAND, "--socket", path, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True,
            timeout=DEADLINE * 2, env=environment(),
        )  # fmt: skip
        os.close(writer)
    assert (process.returncode, process.stderr) == (0, "")


def test_version_shows_both(path: str, garrison: Run) -> None:
    with serving(path, Answers(version={"version": "9.9.9", "protocol": 1})):
        done = garrison("version")
    assert (done.returncode, done.stdout) == (0, f"garrison {VERSION}\nagent    9.9.9\n")


def test_version_works_without_an_agent(garrison: Run) -> None:
    done = garrison("version")
    assert (done.returncode, done.stdout) == (0, f"garrison {VERSION}\nagent    not running\n")


def test_an_agent_of_another_protocol_is_an_error_of_version(path: str, garrison: Run) -> None:
    with serving(path, Answers(version={"version": "9.9.9", "protocol": 2})):
        done = garrison("version")
    assert done.returncode == 1
    assert "protocol" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "--json"], ["start", "x"], ["kill"], ["release"], ["events"], ["events", "-f"]],
)
def test_without_an_agent_every_command_ends_with_69_and_says_how_to_start_it(
    path: str, garrison: Run, arguments: list[str]
) -> None:
    done = garrison(*arguments)
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr.startswith("garrison: the agent is not running")
    assert path in done.stderr
    assert "systemctl start garrison" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_agent_that_hangs_ends_with_69(path: str, garrison: Run) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(4)
        done = garrison("version")
    assert done.returncode == 69
    assert "did not answer within 5 s" in done.stderr


def test_a_refused_user_ends_with_77(path: str, garrison: Run) -> None:
    with serving(path, Answers(), allowed_uids={os.getuid() + 1}):
        done = garrison("status")
    assert done.returncode == 77
    assert "sudo" in done.stderr


# A first run brings in everything: the interpreter's files may be closed to the other user.
AS_NOBODY = """
import os, sys
from garrison.fleet.cli.app import main
path = sys.argv[1]
try:
    sys.argv = ["garrison", "--socket", path + ".none", "status"]
    main()
except SystemExit as end:
    assert end.code == 69
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.argv = ["garrison", "--socket", path, "status"]
main()
"""


def test_a_socket_that_may_not_be_opened_ends_with_77() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = os.path.join(folder, "control.sock")
        with serving(path, Answers(status=healthy())):
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, path], capture_output=True, text=True, timeout=DEADLINE
            )
    assert done.returncode == 77, done.stderr
    assert f"no permission to open {path}" in done.stderr
    assert "sudo" in done.stderr


def test_the_configuration_tells_where_the_socket_is(tmp_path: Path) -> None:
    config = tmp_path / "garrison.toml"
    config.write_text(f'[agent]\nrun_dir = "{tmp_path / "r"}"\n')
    os.chmod(config, 0o644)
    with serving(str(tmp_path / "r" / "control.sock"), Answers(status=healthy())):
        done = run("--config", str(config), "status")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_wrong_configuration_ends_with_78_and_names_the_key(tmp_path: Path) -> None:
    config = tmp_path / "garrison.toml"
    config.write_text('[agent]\nrun_dri = "/x"\n')
    done = run("--config", str(config), "status")
    assert done.returncode == 78
    assert "run_dri" in done.stderr
    assert "--socket" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_is_an_error() -> None:
    done = run("--config", "/nowhere/garrison.toml", "status")
    assert done.returncode == 78
    assert "/nowhere/garrison.toml" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["start"], ["status", "--loud"], ["events", "-n", "many"], ["events", "-n", "5000"],
     ["events", "--kind", "loud"], ["status", "--json", "--watch"], ["stop", "--timeout", "0", "x"]],
)  # fmt: skip
def test_a_wrong_command_line_ends_with_64(garrison: Run, arguments: list[str]) -> None:
    done = garrison(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr


def test_help_is_there_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['garrison', '--help']\n"
        "from garrison.fleet.cli import app\n"
        "try:\n    app.main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'rich', 'msgspec', 'asyncio', 'psutil', 'garrison.supervisor.settings'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_completion_offers_the_workers(path: str) -> None:
    script = {
        "_GARRISON_COMPLETE": "complete_bash",
        "COMP_WORDS": f"garrison --socket {path} stop pr",
        "COMP_CWORD": "4",
    }
    code = "import sys; sys.argv = ['garrison']; from garrison.fleet.cli.app import main; main()"
    with serving(path, Answers(status=healthy())):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE, env=environment(**script)
        )
    assert "process" in done.stdout.split()


def test_watching_goes_on_until_ctrl_c(path: str) -> None:
    with serving(path, Answers(status=healthy())) as running:
        process = subprocess.Popen(
            [*COMMAND, "--socket", path, "status", "--watch", "--interval", "0.2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            seen, deadline = 0, time.monotonic() + DEADLINE
            while seen < 2 and time.monotonic() < deadline:
                seen += "web-17.example" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=DEADLINE)
        assert running.server.path == path
    assert (seen, process.returncode) == (2, 130)
