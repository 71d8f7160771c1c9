"""Steps that several scenarios have in common."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection
from typing import Any

from tests.vm.agent import WORKERS, Agent, Facts
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

CAPABILITIES = {"files": 0xC, "process": 0x81004}
"""What the workers declare: DAC_READ_SEARCH and FOWNER; DAC_READ_SEARCH, NET_ADMIN and SYS_PTRACE (capabilities(7))."""
CONFIGURATION = "/etc/garrison/garrison.toml"
_NO_PRESSURE = "[agent.pressure]\ncpu_percent = 100\nio_percent = 100\nmemory_percent = 100\n"
EMULATED = f"[agent]\ndry_run = true\n{_NO_PRESSURE}"
"""What the agent is told where everything takes some 15 times the CPU time of a real machine: its breaker would be
right to stop the workers there. The kernel's caps stay those of the package.
"""


def booted(machine: Machine, transcript: Transcript) -> None:
    """Wait until systemd is done; say which cgroups the host has."""
    with transcript.step("boot") as say:
        told = machine.try_run("systemctl is-system-running --wait; stat -fc %T /sys/fs/cgroup; uname -r")
        state, kind, kernel = told.output.split()
        assert state == "running", f"systemd is {state}: {machine.run('systemctl --failed --no-pager')}"
        version = "v2" if kind == "cgroup2fs" else "v1"
        say(f"Linux {kernel}, systemd, cgroup {version}; it ran commands {machine.boot_seconds:.1f} s after power-on")


def install(agent: Agent, transcript: Transcript, command: str, what: str) -> None:
    """Install a package and wait until all workers run."""
    with transcript.step(what) as say:
        agent.machine.run(command, 300)
        say(bear_with(agent))


def bear_with(agent: Agent) -> str:
    """Have the agent know that it is emulated, without a restart, and wait until all workers run; return a result."""
    agent.machine.run(f"echo '{EMULATED}' >> {CONFIGURATION} && systemctl reload garrison")
    agent.wait_running()
    return f"{len(WORKERS)} of {len(WORKERS)} workers run"


def healthy(agent: Agent, transcript: Transcript) -> None:
    """Ask the two commands that end with 0 only where nothing needs attention."""
    with transcript.step("status healthy") as say:
        say(agent.machine.run("garrison status").splitlines()[1].strip())
    with transcript.step("`garrison doctor`") as say:
        say(agent.machine.run("garrison doctor").strip().splitlines()[-1])


def configured(agent: Agent, transcript: Transcript) -> None:
    """Give the agent the plain configuration, and measure the start with it: as systemd sees it, and until all run."""
    with transcript.step("systemctl start until all workers run") as say:
        agent.machine.run(
            f"systemctl stop garrison; echo '{EMULATED}' > {CONFIGURATION}\n"
            "systemctl reset-failed garrison && systemctl start garrison"
        )
        began, active = map(int, agent.show("InactiveExitTimestampMonotonic", "ActiveEnterTimestampMonotonic"))
        agent.wait_running()
        ran = agent.machine.run(
            "journalctl -b -u garrison -o short-monotonic --no-pager | grep -e '-> running' | tail -n 1"
        )
        last = float(ran.partition("]")[0].strip("[ "))
        say(f"READY=1 after {(active - began) / 1e6:.1f} s, the last worker after {last - began / 1e6:.1f} s")


def contained(agent: Agent, transcript: Transcript, names: Collection[str] = WORKERS) -> None:
    """See each worker in a cgroup of its own, with the caps that the status promises, as an underprivileged process."""
    with transcript.step("each worker in its cgroup, with its caps") as say:
        seen = set()
        workers, facts = _at_one_time(agent, names)
        for (name, worker), kernel in zip(workers.items(), facts, strict=False):
            promised = worker["limits"]
            wanted = {
                "cpu": round(promised["cpu_quota_percent"]),
                "memory": promised["memory_max"],
                "pids": promised["pids_max"],
            }
            assert kernel.limits == wanted, f"{name}: the kernel has {kernel.limits}, the status says {wanted}"
            assert f"/workers/{name}" in kernel.cgroup, f"{name} is in {kernel.cgroup}"
            assert kernel.cgroup not in seen, f"{name} shares its cgroup: {kernel.cgroup}"
            seen.add(kernel.cgroup)
            cpu, memory, pids = kernel.limits.values()
            say(f"{name} {cpu} % CPU, {memory >> 20} MiB, {pids} tasks")
    with transcript.step("what each process may") as say:
        user = agent.machine.run("id -u garrison-worker").strip()
        for name, kernel in zip(workers, facts, strict=False):
            assert kernel.status["NoNewPrivs"] == "1", f"{name} could gain privileges"
            assert kernel.status["Seccomp"] == "2", f"{name} has no seccomp filter"
            assert set(kernel.status["Uid"].split()) == {user}, f"{name} runs as {kernel.status['Uid']}"
            held = int(kernel.status["CapEff"], 16)
            assert held == CAPABILITIES[name], f"{name} holds {held:x}"
            assert not int(kernel.status["CapBnd"], 16) & ~held, f"{name} could get {kernel.status['CapBnd']}"
            say(_privileges(name, kernel.status))
        say(_privileges("master", facts[-1].status))


def _at_one_time(agent: Agent, names: Collection[str]) -> tuple[dict[str, dict[str, Any]], list[Facts]]:
    """Return the workers and what the kernel says of them and of the master, with the same caps before and after.

    The CPU quotas move where all workers together would pass their common one, which emulated ones do at their start.
    """

    def look() -> tuple[dict[str, dict[str, Any]], list[Facts]] | None:
        before = agent.wait_running(names)
        facts = agent.facts([*(worker["pid"] for worker in before.values()), int(agent.show("MainPID")[0])])
        after = agent.workers()
        return (before, facts) if all(after[name]["limits"] == before[name]["limits"] for name in before) else None

    return agent.machine.until("the caps stay as they are while they are read", look)


def _privileges(name: str, facts: dict[str, str]) -> str:
    seccomp = "filtered" if facts["Seccomp"] == "2" else "no filter"
    return f"{name} uid {facts['Uid'].split()[0]}, CapEff {facts['CapEff'].lstrip('0') or '0'}, {seccomp}"


def _hogs() -> str:
    # More for all of them together, so that it is the spinning one's own quota which holds it.
    config = f"[agent.budget]\ncpu_quota_percent = 40\n{_NO_PRESSURE}"
    for name in WORKERS:
        config += f"[workers.{name}.budget]\ndry_run = true\n"
    for name, module, budget in (
        ("spinning", "cpu_hog.py:CpuHog", "cpu_quota_percent = 10"),
        ("leaking", "memory_hog.py:MemoryHog", 'memory_high = "48 MiB"\nmemory_max = "48 MiB"'),
    ):
        config += f'[workers.{name}]\nmodules = ["/media/modules/{module}"]\n[workers.{name}.budget]\n{budget}\n'
    return config


HOGS = _hogs()
"""A configuration with a worker that spins and one that leaks beside the healthy ones."""


def hogs_held(agent: Agent, transcript: Transcript) -> None:
    """Look at what the kernel lets the workers of `HOGS` do; the agent runs with it since the boot."""
    machine = agent.machine
    with transcript.step("a worker that leaks is killed at its cap, and waits") as say:
        before = agent.wait_running(("process", "files", "spinning"))
        after = agent.wait(
            "the leaking worker is tripped", lambda all_of: all_of["leaking"]["breaker"]["cause"] == "oom"
        )
        _same(before, after)
        leaking = after["leaking"]
        say(f"breaker {leaking['breaker']['state']}, cause oom, kernel: {_oom_line(machine)}")
    with transcript.step("a worker that spins is held to its quota") as say:
        pid = agent.wait_running(("spinning",))["spinning"]["pid"]
        used, at = agent.cpu_seconds(pid)
        time.sleep(10)
        used, at = (later - earlier for later, earlier in zip(agent.cpu_seconds(pid), (used, at), strict=True))
        percent = 100 * used / at
        # One period of 100 ms more than the quota may fall into the window, and /proc counts in hundredths.
        assert percent <= 10 + 100 * 0.02 / at + 1, f"{percent:.1f} % of a core over {at:.1f} s"
        assert percent > 3, f"it does not spin: {percent:.1f} %"
        _same(before, agent.workers())
        say(f"{percent:.1f} % of one core over {at:.1f} s; the others never stopped")


def _same(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> None:
    for name in WORKERS:
        assert after[name]["pid"] == before[name]["pid"], f"{name} did not survive its neighbour"


def _oom_line(machine: Machine) -> str:
    lines = machine.run("dmesg | grep -i 'memory cgroup out of memory\\|Killed process' | tail -n 1").strip()
    assert "leaking" in machine.run("dmesg | grep -i oom-kill | tail -n 1"), lines
    return lines.partition("] ")[2][:90]


HANGS, KILLED = ("a master that hangs (SIGSTOP)", "STOP"), ("a master that is killed (SIGKILL)", "KILL")


def watchdog(agent: Agent, transcript: Transcript, *ways: tuple[str, str]) -> None:
    """Have the master hang, or kill it: each time systemd starts another one, and nothing of the old one is left."""
    for how, signal in ways:
        with transcript.step(f"{how} is replaced") as say:
            before = agent.wait_running()
            (old,) = agent.show("MainPID")
            began = time.monotonic()
            agent.machine.run(f"kill -{signal} {old}")
            agent.machine.until("systemd has started another one", functools.partial(_replaced, agent, old), 180, 2)
            agent.wait_running()
            seconds = time.monotonic() - began
            gone = [str(worker["pid"]) for worker in before.values()] + [old]
            left = agent.machine.try_run(f"ps -o pid=,args= -p {','.join(gone)} | grep garrison").output
            assert not left, f"of the old one is left: {left}"
            alone(agent)
            say(f"all workers run again after {seconds:.0f} s, no orphan, {agent.show('NRestarts')[0]} restarts")


def _replaced(agent: Agent, old: str) -> bool:
    pid, state = agent.show("MainPID", "SubState")
    return state == "running" and pid != old


def alone(agent: Agent) -> None:
    """See that exactly one master, one nursery and the workers run."""
    processes = agent.processes()
    masters = [line for line in processes if "garrisond" in line]
    assert len(masters) == 1, processes
    assert len(processes) == 2 + len(WORKERS), processes


def still_killed(agent: Agent) -> None:
    """See that after a boot the master runs with the killswitch engaged, and has started nothing."""
    agent.wait("all are killed", lambda found: all(each["state"] == "killed" for each in found.values()))
    started = agent.machine.run("journalctl -b -u garrison --no-pager -o cat")
    assert "-> starting" not in started, started
    assert len(agent.processes()) == 1, agent.processes()
    assert agent.machine.try_run("garrison status").status == 3


def removed(agent: Agent, transcript: Transcript, command: str, what: str = "remove") -> None:
    """Remove the package, and look for what is left."""
    with transcript.step(what) as say:
        agent.machine.run(command, 300)
        nothing_runs(agent)
        kept = agent.machine.run("ls -d /etc/garrison/garrison.toml* /var/lib/garrison /var/log/garrison")
        assert "garrison.toml" in kept, kept
        say("no process, no cgroup, no socket; configuration and data are kept")


def purged(agent: Agent, transcript: Transcript, command: str, what: str = "purge") -> None:
    """Purge the package, and look for what is left."""
    with transcript.step(what) as say:
        agent.machine.run(command, 300)
        left = agent.machine.run(
            "find / -xdev -iname '*garrison*' -not -path '/root/*' -not -path '/var/lib/dpkg/*'"
            " -not -path '/var/lib/rpm/*' -not -path '/var/lib/systemd/*' -not -path '/usr/lib/sysimage/*'"
        )
        assert not left, left
        assert agent.machine.try_run("grep garrison /etc/passwd").status == 1, "the user is left"
        say("no file and no user is left")


def nothing_runs(agent: Agent) -> None:
    """See that nothing of the agent is left but configuration and data."""
    assert not agent.processes(), agent.processes()
    assert not agent.cgroups(), agent.cgroups()
    left = agent.machine.try_run("ls -d /opt/garrison /run/garrison /usr/sbin/garrisond /usr/bin/garrison 2>/dev/null")
    assert not left.output, left.output
