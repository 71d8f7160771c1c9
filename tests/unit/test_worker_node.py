"""A worker's node, and the notices of its OOM kills: heard at once, and no more often than is good."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from garrison.supervisor.cgroups.base import Limits, Usage
from garrison.supervisor.cgroups.oom import EventsFileWatch
from garrison.supervisor.worker.launch import Place
from garrison.supervisor.worker.node import OOM_QUIET_SECONDS, WorkerNode


class Tree:
    """A cgroup tree of one node, of which only the counters are there; its notices are inotify's, as on v2."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("high 0\n")
        self.kills = 0
        self.reads = 0

    def oom_watch(self, worker: str) -> EventsFileWatch:
        return EventsFileWatch(str(self.path))

    def usage(self, worker: str) -> Usage:
        self.reads += 1
        return Usage(oom_kills=self.kills)

    def notify(self) -> None:
        self.path.write_text("high 1\n")


def run(path: Path, what: Callable[[Tree, list[Usage], WorkerNode], Any]) -> None:
    async def main() -> None:
        tree, seen = Tree(path), list[Usage]()
        cgroups: Any = tree
        place = Place(cgroups, threading.Lock(), lambda: 0, lambda: False, lambda: None)
        node = WorkerNode("process", place, seen.append, lambda text: None)
        node.started(Limits())
        try:
            await what(tree, seen, node)
        finally:
            node.unwatch()

    asyncio.run(main())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  the kernel's notice sets nothing that could be awaited
            await asyncio.sleep(0.005)


def test_a_node_that_speaks_without_end_is_read_a_few_times_a_second(tmp_path: Path) -> None:
    async def main(tree: Tree, seen: list[Usage], _node: WorkerNode) -> None:
        # What the kernel does to memory.events of a worker that is held at its memory.high: up to 100 times a second.
        begin = time.monotonic()
        for _ in range(150):
            tree.notify()
            await asyncio.sleep(0.01)
        passed = time.monotonic() - begin
        assert tree.reads >= 2
        # One read as the notice comes, and one when it is listened to again.
        assert tree.reads <= 2 * (passed / OOM_QUIET_SECONDS + 1)
        assert seen == []

    run(tmp_path / "events", main)


def test_a_kill_is_told_whether_it_comes_with_the_first_notice_or_while_nobody_listens(tmp_path: Path) -> None:
    async def main(tree: Tree, seen: list[Usage], _node: WorkerNode) -> None:
        # v1 speaks before it kills: the first look finds nothing.
        tree.notify()
        await until(lambda: tree.reads)
        assert seen == []
        tree.kills = 1
        await until(lambda: seen)
        # And at once, where nothing was said before.
        await asyncio.sleep(2 * OOM_QUIET_SECONDS)
        reads = tree.reads
        seen.clear()
        tree.notify()
        await until(lambda: seen)
        assert tree.reads == reads + 1

    run(tmp_path / "events", main)


def test_who_is_no_longer_watched_is_not_read_any_more(tmp_path: Path) -> None:
    async def main(tree: Tree, seen: list[Usage], node: WorkerNode) -> None:
        tree.notify()
        await until(lambda: tree.reads)
        node.unwatch()
        tree.kills = 1
        reads = tree.reads
        await asyncio.sleep(2 * OOM_QUIET_SECONDS)
        assert (tree.reads, seen) == (reads, [])
        node.unwatch()

    run(tmp_path / "events", main)
