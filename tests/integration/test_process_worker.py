"""The process module on the real kernel: what is reported of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from garrison.workers.process.settings import Config
from garrison.workers.runtime.module import ConfigError
from tests.integration._process_support import Processes, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="facts of other users' processes need root")


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    try:
        yield started
    finally:
        started.close()


def test_an_exec_is_reported_with_what_proc_tells(processes: Processes) -> None:
    with running() as module:
        child = processes.start("sleep", "60", cwd="/usr")
        event = module.event(event__action="exec", process__pid=child.pid)
        process = event["process"]
        assert event["event"] == {
            "kind": "event",
            "category": ["process"],
            "type": ["start"],
            "action": "exec",
            "provider": module.module.source,
        }
        assert process["executable"] == os.path.realpath("/usr/bin/sleep")
        assert process["args"] == ["sleep", "60"]
        assert process["args_count"] == 2
        assert process["command_line"] == "sleep 60"
        assert process["working_directory"] == "/usr"
        assert process["session_leader"]["pid"] == child.pid
        assert process["start"].endswith("Z")
        assert event["user"]["id"] == "0"
        assert event["user"]["name"] == "root"
        parent = process["parent"]
        assert parent["pid"] == os.getpid()
        assert "pytest" in parent["command_line"] or "python" in parent["name"]
        assert parent["parent"]["pid"] == os.getppid()
        assert "tags" not in event


def test_a_terminal_is_named(processes: Processes) -> None:
    with running() as module:
        main, terminal = os.openpty()
        try:
            # A session leader without a terminal gets the first one that it opens.
            child = processes.start("sh", "-c", 'exec sleep 60 < "$0"', os.ttyname(terminal))
            event = module.event(event__action="exec", process__name="sleep", process__pid=child.pid)
            assert event["process"]["tty"]["name"] == os.ttyname(terminal)[5:]
        finally:
            os.close(main)
            os.close(terminal)


def test_a_process_of_another_user_carries_its_ids(processes: Processes) -> None:
    with running() as module:
        child = processes.start("sleep", "60", user=65534, group=65534, extra_groups=[])
        event = module.event(event__action="exec", process__pid=child.pid)
        assert event["user"]["id"] == "65534"
        assert event["user"]["name"] == "nobody"


def test_names_that_are_no_utf8_are_reported_readably(processes: Processes) -> None:
    with running() as module:
        child = processes.start("sh", "-c", "sleep 60; :", b"\xff\xfe")  # type: ignore[arg-type]
        event = module.event(event__action="exec", process__pid=child.pid)
        assert event["process"]["args"][-1] == "\\xff\\xfe"


def test_a_long_command_line_is_cut(processes: Processes) -> None:
    with running() as module:
        child = processes.start("sh", "-c", "sleep 60; :", "x" * 2000)
        event = module.event(event__action="exec", process__pid=child.pid)
        assert len(event["process"]["command_line"]) <= 512
        assert "args_count" not in event["process"]


def test_every_process_of_a_burst_is_reported_or_counted() -> None:
    count = 2000
    with running() as module:
        # Each child reports its own pid through the pipe before it executes.
        script = (
            "import os\n"
            f"for _ in range({count}):\n"
            "    pid = os.posix_spawn('/bin/true', ['true', 'burst'], {})\n"
            "    os.write(1, b'%d\\n' % pid)\n"
            "    os.waitpid(pid, 0)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
        pids = [int(line) for line in done.stdout.split()]
        assert len(pids) == count
        module.settled()
        lost = module.call(lambda: module.module.task(module.box, "stats", {}))["lost"] or 0
        reported: dict[int, int] = {}
        for event in module.all(event__action="exec"):
            reported[event["process"]["pid"]] = reported.get(event["process"]["pid"], 0) + 1
        missing = [pid for pid in set(pids) if pid not in reported]
        assert len(missing) <= lost, f"{len(missing)} missing, {lost} lost"


def test_a_process_that_vanishes_at_once_is_reported_with_its_parent() -> None:
    with running() as module:
        with module.held():
            child = subprocess.Popen(["true"])
            child.wait()
        event = module.event(event__action="exec", process__pid=child.pid)
        assert event["tags"] == ["incomplete"]
        assert "name" not in event["process"]
        assert event["process"]["parent"]["pid"] == os.getpid()
        assert event["process"]["parent"]["executable"] == os.path.realpath("/proc/self/exe")
        assert event["user"]["id"] == "0"


def test_the_real_parent_is_kept_when_it_ends_first(processes: Processes) -> None:
    with running() as module:
        with module.held():
            done = subprocess.run(
                ["sh", "-c", "sleep 57 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True
            )
        pid = int(done.stdout)
        try:
            event = module.event(event__action="exec", process__pid=pid)
            assert event["process"]["parent"]["pid"] != 1
            assert event["process"]["parent"]["parent"]["pid"] == os.getpid()
        finally:
            os.kill(pid, 9)


def test_forks_and_exits_are_reported_where_asked_for() -> None:
    with running(Config(fork_events=True, exit_events=True)) as module:
        child = subprocess.Popen(["sh", "-c", "exit 3"])
        child.wait()
        fork = module.event(event__action="fork", process__pid=child.pid)
        assert fork["process"]["parent"]["pid"] == os.getpid()
        end = module.event(event__action="exit", process__pid=child.pid)
        assert end["process"]["exit_code"] == 3
        assert end["event"]["type"] == ["end"]
        killed = subprocess.Popen(["sleep", "60"])
        killed.kill()
        killed.wait()
        assert module.event(event__action="exit", process__pid=killed.pid)["process"]["exit_code"] == 137


def test_excluded_executables_are_counted_and_not_reported(processes: Processes) -> None:
    sleep = os.path.realpath("/usr/bin/sleep")
    with running(Config(exclude_executables=(sleep,))) as module:
        child = processes.start("sleep", "60")
        other = processes.start("tail", "-f", "/dev/null")
        module.event(event__action="exec", process__pid=other.pid)
        assert not module.all(event__action="exec", process__pid=child.pid)
        assert module.call(lambda: module.module.task(module.box, "stats", {}))["excluded"] >= 1


def test_what_ran_before_the_start_is_known_and_not_reported(processes: Processes) -> None:
    child = processes.start("sleep", "60")
    with running() as module:
        processes.start("sleep", "61")
        module.event(event__action="exec", process__command_line="sleep 61")
        assert not module.all(event__action="exec", process__pid=child.pid)


def test_a_degraded_worker_does_less_but_reports_each_exec(processes: Processes) -> None:
    with running(degraded=True) as module:
        child = processes.start("sleep", "60")
        event = module.event(event__action="exec", process__pid=child.pid)
        assert event["process"]["executable"].endswith("sleep")
        assert "working_directory" not in event["process"]
        assert event["user"]["id"] == "0"


def test_an_unknown_task_is_refused_and_rescan_finds_nothing_new(processes: Processes) -> None:
    processes.start("sleep", "60")
    with running() as module:
        with pytest.raises(LookupError, match="rescan"):
            module.call(lambda: module.module.task(module.box, "nonsense", {}))
        assert module.call(lambda: module.module.task(module.box, "rescan", {}))["scan"] == "resync"
        module.until(lambda: module.module.task(module.box, "stats", {})["scans"] >= 2, "second look")
        stale = [e for e in module.all(event__provider="resync") if e["process"].get("command_line") == "sleep 60"]
        assert not stale


def test_statistics_come_as_metrics() -> None:
    with running(Config(stats_seconds=0.5)) as module:
        event = module.event(event__kind="metric")
        assert event["garrison"]["process"]["source"] == module.module.source


def test_polling_finds_new_processes_and_second_execs(processes: Processes) -> None:
    with running(Config(source="poll", poll_seconds=0.2)) as module:
        assert module.module.source == "poll"
        child = processes.start("sh", "-c", "sleep 1.5; exec sleep 59")
        first = module.event(event__action="exec", process__pid=child.pid)
        assert first["event"]["provider"] == "poll"
        module.event(event__action="exec", process__pid=child.pid, process__command_line="sleep 59")


def test_polling_does_not_take_a_fork_for_an_exec(processes: Processes) -> None:
    with running(Config(source="poll", poll_seconds=0.2)) as module:
        child = processes.start("sh", "-c", "(while :; do sleep 0.4; done) & read x", stdin=subprocess.PIPE)
        module.event(event__action="exec", process__name="sleep", process__parent__parent__pid=child.pid)
        shells = [e for e in module.all(event__action="exec") if e["process"]["session_leader"]["pid"] == child.pid]
        assert len([e for e in shells if "while" in e["process"].get("command_line", "")]) == 1


def test_the_source_can_be_changed_while_it_runs(processes: Processes) -> None:
    with running(Config(source="poll", poll_seconds=0.2)) as module:
        module.configure(Config(source="auto"))
        if module.module.source == "poll":
            pytest.skip("the proc connector is not available here")
        child = processes.start("sleep", "60")
        assert module.event(event__action="exec", process__pid=child.pid)["event"]["provider"] in (
            "connector",
            "resync",
        )
        module.configure(Config(source="poll", poll_seconds=0.2))
        second = processes.start("sleep", "61")
        assert module.event(event__action="exec", process__pid=second.pid)["event"]["provider"] == "poll"


def test_an_overflow_is_counted_reported_and_resynchronised(processes: Processes) -> None:
    with running(Config(receive_buffer_bytes=4096, source="auto")) as module:
        if module.module.source == "poll":
            pytest.skip("the proc connector is not available here")
        with module.held():
            # Nobody reads: the queue overflows, and from then on the kernel drops everything until it is empty.
            for _ in range(300):
                os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
            survivor = processes.start("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert survivor.stdin is not None
            assert survivor.stdout is not None
            # An answer comes from its program, so the kernel has told of the exec; its name changes before that.
            os.write(survivor.stdin.fileno(), b"x")
            assert os.read(survivor.stdout.fileno(), 1) == b"x"
        state = module.event(event__kind="state", event__action="overflow")
        assert state["garrison"]["lost"] is None or state["garrison"]["lost"] > 0
        event = module.event(event__action="exec", process__pid=survivor.pid)
        assert event["event"]["provider"] == "resync"
        assert event["tags"] == ["resync"]
        assert event["process"]["executable"].endswith("cat")
        assert module.call(lambda: module.module.task(module.box, "stats", {}))["overflows"] >= 1
        module.settled()
        assert len(module.all(event__action="exec", process__pid=survivor.pid)) == 1


WITHOUT = """
import sys
sys.path.insert(0, {root!r})
from garrison.workers.process.settings import Config
from tests.integration._process_support import running
import subprocess
with running(Config(poll_seconds=0.2, source={source!r})) as module:
    child = subprocess.Popen(["sleep", "60"])
    try:
        event = module.event(event__action="exec", process__pid=child.pid)
        print(module.module.source, event["event"]["provider"], event["process"]["name"])
    finally:
        child.kill()
        child.wait()
"""


def without(prefix: list[str], source: str = "auto") -> subprocess.CompletedProcess[str]:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.run(
        [*prefix, sys.executable, "-c", WITHOUT.format(root=root, source=source)],
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_without_cap_net_admin_processes_are_still_seen() -> None:
    """Linux 6.6 gave the connector to everybody; before it, this is the polling fallback."""
    done = without(["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[2] == "sleep"


@pytest.mark.parametrize(
    "namespace",
    [["--net"], ["--user", "--map-root-user"], ["--pid", "--fork", "--mount-proc"]],
    ids=["network", "user", "pid"],
)
def test_where_the_connector_cannot_work_proc_is_polled(namespace: list[str]) -> None:
    """In another user namespace the kernel ignores the request without a word; events may come all the same."""
    if subprocess.run(["unshare", *namespace, "true"], capture_output=True).returncode:
        pytest.skip(f"unshare {namespace} is not allowed here")
    done = without(["unshare", *namespace])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["poll", "poll", "sleep"]


def test_a_demanded_connector_that_cannot_work_is_an_error_that_says_why() -> None:
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("unshare --net is not allowed here")
    done = without(["unshare", "--net"], source="connector")
    assert done.returncode != 0
    assert "the kernel has no proc connector here" in done.stderr


def test_a_refused_source_leaves_the_old_one_working(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    from garrison.workers.process import module as module_file
    from garrison.workers.process.connector import ConnectorError

    def refuse(*_: object) -> None:
        raise ConnectorError("not here")

    with running(Config(source="poll", poll_seconds=0.2)) as module:
        monkeypatch.setattr(module_file, "open_connector", refuse)
        with pytest.raises(ConfigError, match="not here"):
            module.configure(Config(source="connector"))
        child = processes.start("sleep", "60")
        module.event(event__action="exec", process__pid=child.pid)
