"""The process module's policy: path rules, shells, throttling of alerts, the cache, looks at /proc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.workers.process import reference, rules
from garrison.workers.process.alerts import MAX_KEYS, AlertGate, Key
from garrison.workers.process.cache import KEEP_EXITED_SECONDS, ProcessCache
from garrison.workers.process.detect import Policy, is_shell, reads_stdin, script_of
from garrison.workers.process.facts import Image, Process
from garrison.workers.process.procfs import Stat
from garrison.workers.process.recheck import MAX_SHELLS, MAX_YOUNG, Rechecks
from garrison.workers.process.scan import ProcessTable, Seen
from garrison.workers.process.settings import Config

POLICY = Policy(Config())


def found(image: Image, policy: Policy = POLICY) -> list[str]:
    return [finding.rule.id.removeprefix("process-") for finding in policy.judge(image)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/bin/ls", []),
        ("/tmp/x", ["temporary-executable"]),
        ("/tmp/a/b/c", ["temporary-executable"]),
        ("/tmpx/x", []),
        ("/var/tmp/x", ["temporary-executable"]),
        ("/dev/shm/x", ["temporary-executable"]),
        ("/run/shm/x", ["temporary-executable"]),
        ("/run/user/1000/x", ["temporary-executable"]),
        ("/tmp/.x", ["temporary-executable", "hidden-executable"]),
        ("/home/a/.cargo/bin/rg", []),
        ("/home/a/.local/bin/tool", []),
        ("/home/a/.local/bin/.tool", ["hidden-executable"]),
        ("/home/a/.x/tool", ["hidden-executable"]),
        ("/var/lib/.../tool", ["hidden-executable"]),
        ("/usr/lib/x.so/tool.sh", []),
        ("/home/a/.cargo/.x/tool", ["hidden-executable"]),
        ("", []),
    ],
)
def test_paths(path: str, expected: list[str]) -> None:
    assert found(Image(executable=path)) == expected


@pytest.mark.parametrize(
    ("name", "euid", "expected"),
    [
        ("payload", 0, ["memfd-executable"]),
        ("runc_cloned:/proc/self/exe", 0, []),
        ("runc_cloned:/proc/self/exe", 1000, ["memfd-executable"]),
        (".hidden", 0, ["memfd-executable"]),
    ],
)
def test_memory_files(name: str, euid: int, expected: list[str]) -> None:
    assert found(Image(executable=f"/memfd:{name}", deleted=True, memfd=True, euid=euid)) == expected


def test_a_file_named_like_a_memory_file_is_none() -> None:
    assert found(Image(executable="/memfd:x")) == []


def test_deleted_executables() -> None:
    assert found(Image(executable="/opt/x", deleted=True)) == ["deleted-executable"]
    assert found(Image(executable="/opt/x", deleted=True), Policy(Config(deleted_allow=("/opt/",)))) == []


def test_what_is_allowed() -> None:
    policy = Policy(
        Config(
            temporary_allow=("/tmp/build/", "/tmp/tool"),
            hidden_allow=(".x",),
            hidden_paths_allow=("/opt/.y/tool",),
        )
    )
    assert found(Image(executable="/tmp/build/a.out"), policy) == []
    assert found(Image(executable="/tmp/tool"), policy) == []
    assert found(Image(executable="/tmp/tool2"), policy) == ["temporary-executable"]
    assert found(Image(executable="/opt/.x/tool"), policy) == []
    assert found(Image(executable="/opt/.y/tool"), policy) == []
    assert found(Image(executable="/opt/.y/other"), policy) == ["hidden-executable"]


def image(executable: str, *args: str, cwd: str = "/home") -> Image:
    return Image(executable=executable, args=args, cwd=cwd)


@pytest.mark.parametrize(
    ("given_image", "script"),
    [
        (image("/bin/sh", "sh", "x.sh"), "/home/x.sh"),
        (image("/bin/sh", "sh", "/tmp/x.sh", "a"), "/tmp/x.sh"),
        (image("/bin/sh", "sh", "../tmp/x.sh"), "/tmp/x.sh"),
        (image("/bin/sh", "sh", "-ex", "x.sh"), "/home/x.sh"),
        (image("/bin/bash", "bash", "-o", "pipefail", "x.sh"), "/home/x.sh"),
        (image("/bin/bash", "bash", "--rcfile", "rc", "x.sh"), "/home/x.sh"),
        (image("/bin/sh", "sh", "--", "x.sh"), "/home/x.sh"),
        (image("/bin/sh", "sh", "-c", "/tmp/x"), ""),
        (image("/bin/sh", "sh", "-s", "x"), ""),
        (image("/bin/sh", "sh"), ""),
        (image("/bin/busybox", "busybox", "sh", "x.sh"), "/home/x.sh"),
        (image("/bin/busybox", "sh", "x.sh"), "/home/x.sh"),
        (image("/usr/bin/python3.11", "python3", "-u", "x.py"), "/home/x.py"),
        (image("/usr/bin/python3.11", "python3", "-W", "error", "x.py"), "/home/x.py"),
        (image("/usr/bin/python3.11", "python3", "-c", "pass", "/tmp/x"), ""),
        (image("/usr/bin/python3.11", "python3", "-m", "pip", "/tmp/x"), ""),
        (image("/usr/bin/perl", "perl", "-e", "1", "/tmp/x"), ""),
        (image("/usr/bin/perl", "perl", "-w", "x.pl"), "/home/x.pl"),
        (image("/usr/bin/node", "node", "--require", "m", "x.js"), "/home/x.js"),
        (image("/usr/bin/ls", "ls", "/tmp/x"), ""),
        (image("/bin/sh", "sh", "x.sh", cwd=""), ""),
    ],
)
def test_scripts(given_image: Image, script: str) -> None:
    assert script_of(given_image) == script


def test_scripts_are_judged_by_path_where_wanted() -> None:
    bad = image("/bin/sh", "sh", "/tmp/.x/y.sh")
    assert found(bad) == ["temporary-script", "hidden-script"]
    assert found(bad, Policy(Config(script_rules=False))) == []


@pytest.mark.parametrize(
    ("given_image", "shell"),
    [
        (image("/bin/bash"), True),
        (image("/usr/bin/dash", "sh"), True),
        (image("/usr/bin/zsh-5.9"), True),
        (image("/bin/bash5.2"), True),
        (image("/bin/rbash"), True),
        (image("/bin/mksh"), True),
        (image("/bin/tcsh"), True),
        (image("/bin/busybox", "sh"), True),
        (image("/bin/busybox", "busybox", "ash"), True),
        (image("/bin/busybox", "ls"), False),
        (image("/bin/busybox", "busybox", "ls", "sh"), False),
        (image("/opt/x", "-bash"), True),
        (image("/usr/bin/ssh", "ssh"), False),
        (image("/usr/bin/sh.real"), False),
        (image("", "bash"), True),
        (image(""), False),
    ],
)
def test_shells(given_image: Image, shell: bool) -> None:
    assert is_shell(given_image) is shell


@pytest.mark.parametrize(
    ("args", "reads"),
    [
        ((), True),
        (("-i",), True),
        (("-li",), True),
        (("--norc", "-i"), True),
        (("--rcfile", "x"), True),
        (("-o", "pipefail"), True),
        (("-s", "arg"), True),
        (("-",), True),
        (("--",), True),
        (("-c", "ls"), False),
        (("-lc", "ls"), False),
        (("x.sh",), False),
        (("-e", "x.sh"), False),
        (("--", "x.sh"), False),
        (("+x",), True),
    ],
)
def test_which_shells_read_their_commands_from_standard_input(args: tuple[str, ...], reads: bool) -> None:
    assert reads_stdin(image("/bin/bash", "bash", *args)) is reads


@given(
    st.lists(st.text(max_size=8), max_size=6), st.sampled_from(["/bin/sh", "/bin/busybox", "/usr/bin/perl", "/tmp/x"])
)
def test_any_arguments_can_be_judged(args: list[str], executable: str) -> None:
    any_image = image(executable, *args)
    is_shell(any_image)
    reads_stdin(any_image)
    script = script_of(any_image)
    assert not script or script.startswith("/")
    POLICY.judge(any_image)


def test_trust_goes_by_the_exact_path_and_not_to_deleted_files() -> None:
    assert POLICY.trusts_holder(Image(executable="/usr/sbin/sshd"))
    assert not POLICY.trusts_holder(Image(executable="/tmp/usr/sbin/sshd"))
    assert not POLICY.trusts_holder(Image(executable="/usr/sbin/sshd", deleted=True))
    assert not POLICY.trusts_holder(None)


def key(name: str = "x") -> Key:
    return Key("rule", name, "/bin/sh", 0)


def test_a_repeat_is_held_and_told_with_the_next() -> None:
    gate = AlertGate(60, 60, 73)
    assert gate.admit(key(), 47, 0) == 0
    assert gate.admit(key(), 47, 1) is None
    assert gate.admit(key(), 47, 59) is None
    assert gate.admit(key("y"), 47, 59) == 0
    assert gate.admit(key(), 47, 60) == 2


def test_a_storm_of_lesser_findings_leaves_room_for_high_ones() -> None:
    gate = AlertGate(60, 10, 73)
    sent = [gate.admit(key(str(number)), 47, 0) for number in range(100)]
    assert sum(one is not None for one in sent) == 10
    assert gate.admit(key("shell"), 73, 0) == 0


def test_a_finding_over_the_rate_comes_when_there_is_room() -> None:
    gate = AlertGate(60, 1, 73)
    assert gate.admit(key("a"), 47, 0) == 0
    assert gate.admit(key("b"), 47, 0) is None
    assert gate.admit(key("b"), 47, 70) == 1


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([47, 73]), st.floats(0, 50), st.booleans()), max_size=200),
    st.floats(1, 100),
    st.floats(1, 30),
)
def test_every_alert_is_sent_or_counted(steps: list[tuple[int, int, float, bool]], window: float, rate: float) -> None:
    gate = AlertGate(window, rate, 73)
    now, offered, told = 0.0, 0, 0
    for name, severity, pause, expire in steps:
        now += pause
        offered += 1
        held = gate.admit(key(str(name)), severity, now)
        told += 0 if held is None else 1 + held
        if expire:
            told += sum(gate.expire(now).values())
    told += sum(gate.expire(now + 1000).values()) + gate.forgotten
    assert told == offered


def test_the_findings_remembered_are_bounded_and_what_is_forgotten_is_counted() -> None:
    gate = AlertGate(60, 6000, 73)
    for number in range(3 * MAX_KEYS):
        for _ in range(2):
            gate.admit(key(str(number)), 47, 0)
    told = sum(gate.expire(1000).values()) + gate.forgotten
    assert told == 3 * MAX_KEYS * 2 - 3 * MAX_KEYS


@given(
    st.integers(4, 40),
    st.lists(
        st.tuples(st.sampled_from(["fork", "exec", "exit"]), st.integers(1, 60), st.integers(1, 60)), max_size=200
    ),
)
def test_the_cache_never_holds_more_than_its_capacity(capacity: int, steps: list[tuple[str, int, int]]) -> None:
    cache = ProcessCache(capacity)
    for at, (what, first, second) in enumerate(steps):
        if what == "fork":
            cache.fork(first, second)
        elif what == "exec":
            cache.put(Process(pid=first, ppid=second, image=Image(name="x")))
        else:
            cache.exit(first, float(at))
        assert len(cache) <= capacity
        assert len(list(cache.ancestors(Process(pid=0, ppid=first), 4))) <= 4


def test_a_forked_child_has_its_parent_s_image_and_an_ended_parent_is_remembered_for_a_while() -> None:
    cache = ProcessCache(64)
    cache.put(Process(pid=1, image=Image(name="parent"), stamp=9, shell=True))
    child = cache.fork(1, 2)
    assert child.forked
    assert child.image is not None
    assert child.image.name == "parent"
    assert child.shell
    cache.exit(1, 0.0)
    assert [parent.pid for parent in cache.ancestors(child, 4)] == [1]
    cache.fork(2, 3)
    cache.exit(3, KEEP_EXITED_SECONDS + 1)
    assert list(cache.ancestors(child, 4)) == []


def test_a_reused_pid_ends_the_chain_of_parents() -> None:
    cache = ProcessCache(64)
    cache.put(Process(pid=1, start_ticks=100))
    assert list(cache.ancestors(Process(pid=2, ppid=1, start_ticks=50), 4)) == []


def test_the_dead_do_not_push_out_the_living() -> None:
    cache = ProcessCache(64)
    for pid in range(1, 33):
        cache.put(Process(pid=pid))
    for pid in range(1000, 2000):
        cache.fork(1, pid)
        cache.exit(pid, 0.0)
    assert all(cache.peek(pid) is not None for pid in range(1, 33))


def stat(ppid: int, start: int, stamp: int, *, kernel: bool = False) -> Stat:
    return Stat("x", "S", ppid, 0, 0, 0, kernel, start, stamp)


def look(table: ProcessTable, processes: dict[int, Stat]) -> list[tuple[str, int]]:
    seen = table.scan(list_pids=lambda: sorted(processes), stat=processes.get)
    return [(one.change, one.pid) for one in seen if isinstance(one, Seen)]


def test_a_look_tells_execs_forks_and_exits_apart() -> None:
    table = ProcessTable()
    assert look(table, {1: stat(0, 1, 11), 2: stat(0, 1, 0, kernel=True)}) == [("exec", 1)]
    now = {1: stat(0, 1, 11), 5: stat(1, 50, 11), 6: stat(1, 51, 66)}
    assert look(table, now) == [("exit", 2), ("fork", 5), ("exec", 6)]
    assert look(table, now) == []
    now[5] = stat(1, 50, 55)
    assert look(table, now) == [("exec", 5)]
    now[6] = stat(1, 90, 67)
    assert look(table, now) == [("exit", 6), ("exec", 6)]
    assert len(table) == 3


def test_what_was_reported_by_other_means_is_not_reported_again() -> None:
    table = ProcessTable()
    table.note(7, 70, 77)
    assert table.has(7, 70, 77)
    assert look(table, {7: stat(1, 70, 77)}) == []


@given(
    st.lists(
        st.dictionaries(
            st.integers(1, 12), st.builds(stat, st.integers(0, 12), st.integers(1, 4), st.integers(0, 4)), max_size=8
        ),
        max_size=8,
    )
)
def test_after_a_look_the_table_is_what_lives(rounds: list[dict[int, Stat]]) -> None:
    table = ProcessTable()
    alive: set[int] = set()
    for processes in rounds:
        for change, pid in look(table, processes):
            if change == "exit":
                assert pid in alive
                alive.discard(pid)
            else:
                alive.add(pid)
        assert alive == set(processes)
        assert len(table) == len(processes)


def test_rechecks_are_bounded_and_what_is_left_out_is_counted() -> None:
    rechecks = Rechecks()
    for pid in range(MAX_YOUNG + 5):
        rechecks.add(Process(pid=pid), 0.0)
    for pid in range(MAX_SHELLS + 5):
        rechecks.add_shell(Process(pid=pid))
    assert rechecks.skipped == 10
    assert rechecks.young(0.5) == []
    assert len(rechecks.young(2.0, limit=100)) == 100


def test_every_shell_and_every_process_comes_round() -> None:
    rechecks = Rechecks()
    for pid in range(100):
        rechecks.add_shell(Process(pid=pid))
    seen: set[int] = set()
    for _ in range(15):
        for process in rechecks.shells(1.0):
            seen.add(process.pid)
            rechecks.add_shell(process)
    assert seen == set(range(100))
    everything = [Process(pid=pid) for pid in range(700)]
    swept = rechecks.sweep(everything, 1.0)
    while not rechecks.sweep_done:
        swept += rechecks.sweep(None, 1.0)
    assert swept == everything


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonsense": 1},
        {"poll_seconds": 0.1},
        {"cache_size": 1},
        {"source": "ebpf"},
        {"temporary_paths": ["relative"]},
        {"trusted_holders": "x"},
        {"receive_buffer_bytes": 2**40},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Config)


def test_only_changed_settings_need_be_given() -> None:
    config = msgspec.convert({"source": "poll", "hidden_allow": [".x"]}, Config)
    assert config.source == "poll"
    assert config.hidden_allow == (".x",)
    assert config.cache_size == Config().cache_size


def test_rules_have_ids_and_bits_of_their_own() -> None:
    assert len({rule.id for rule in rules.RULES}) == len({rule.bit for rule in rules.RULES}) == len(rules.RULES)


@pytest.mark.parametrize("table", [reference.settings_table, reference.rules_table])
def test_the_documentation_has_the_current_tables(table: Callable[[], str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "process-worker.md"
    assert table() in page.read_text(encoding="utf-8"), f"paste the output of {table.__name__}() into {page.name}"
