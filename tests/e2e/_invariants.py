"""What must hold of an agent however it was treated."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.e2e._agent import RunningAgent, alive, until

MISTAKES = ("supervision failed", "Exception in callback", "Traceback", "InvalidTransition", "never retrieved")


def children(pid: int) -> dict[int, str]:
    """Return the state of every child of a process, zombies included."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found[int(entry)] = fields[0]
    return found


def descriptors(pid: int) -> list[str]:
    """Return what every descriptor of a process is, without numbers that change."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}").split(":[")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def descriptors_at_rest(pid: int) -> list[str]:
    """Return the same without those of a connection that is just being closed."""
    looks = []
    for _ in range(10):
        looks.append(descriptors(pid))
        time.sleep(0.03)
    return min(looks, key=len)


def threads(pid: int) -> int:
    """Return how many threads a process has."""
    return len(os.listdir(f"/proc/{pid}/task"))


def nursery_of(agent: RunningAgent) -> int:
    """Return the pid of the nursery, or 0."""
    for pid in children(agent.pid):
        try:
            if b"garrison: nursery" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        except FileNotFoundError:
            continue
    return 0


def assert_no_mistake(agent: RunningAgent) -> None:
    """The agent's log must not tell of a mistake in the agent."""
    text = agent.errors()
    for word in MISTAKES:
        assert word not in text, "\n".join(line for line in text.splitlines() if word in line or "| " in line)[-4000:]


def assert_in_their_cgroups(agent: RunningAgent) -> None:
    """Every child of the nursery that has left its gate is in a worker's node, in every hierarchy in use."""
    nursery = nursery_of(agent)
    for pid in children(nursery) if nursery else ():
        try:
            # The name before the place: what has a name of its own by now must have been placed before.
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not name or b"garrison: nursery" in name:
            continue  # dead, or at its gate
        ours = [line for line in lines if agent.root in line]
        if alive(pid):
            assert ours, (name, lines)
            assert all(f"/{agent.root}/workers/" in line for line in ours), (name, lines)


def assert_clean(agent: RunningAgent) -> None:
    """No zombie of master or nursery, and a node for each worker with a process and for no other."""
    nursery = nursery_of(agent)

    def zombies() -> list[int]:
        parents = [agent.pid, *([nursery] if nursery and alive(nursery) else [])]
        return [pid for parent in parents for pid, state in children(parent).items() if state == "Z"]

    until(lambda: not zombies(), "no zombie is left")

    def there() -> set[str]:
        return {worker["name"] for worker in agent.client.call("status")["workers"] if worker["pid"]}

    def nodes() -> set[str]:
        return {node.rpartition("/workers/")[2] for node in agent.nodes() if "/workers/" in node}

    # Both anew each time: what starts while one looks has a node and no pid yet.
    until(lambda: nodes() == there(), "the nodes are those of the workers that run")
