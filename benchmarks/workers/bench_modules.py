"""The modules that the agent's workers run in the benchmarks: spinning, and a source of events."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from garrison.workers.runtime.module import Module, Sandbox


class Spin(Module):
    """Burns whatever the quota gives."""

    def run(self, box: Sandbox) -> None:
        while not box.stopping:
            for _ in range(200_000):
                pass
            box.wait(timeout=0)


class SourceConfig(msgspec.Struct, forbid_unknown_fields=True):
    """A new `turn` asks for `count` more events."""

    turn: int = 0
    count: int = 0


class Source(Module):
    """Builds and sends events of a realistic shape, as fast as they are taken."""

    Config = SourceConfig

    def init(self, box: Sandbox) -> None:
        self._done = box.config.turn

    def run(self, box: Sandbox) -> None:
        while not box.stopping:
            if box.config.turn != self._done:
                self._done = box.config.turn
                self._send(box, box.config.count)
            box.wait(timeout=1.0)

    def _send(self, box: Sandbox, count: int) -> None:
        begin = time.monotonic()
        for number in range(count):
            while not box.emit(execution(number)):
                # Full: that try was dropped and counted. A reader of something would stop reading here.
                box.wait(timeout=0.001)
                if box.stopping:
                    return
        # The harness reads this in the agent's log; the end it sees in the file.
        box.log.info("turn %d began at %.6f, %d events in %.3f s", self._done, begin, count, time.monotonic() - begin)


def execution(number: int) -> dict[str, Any]:
    """Return the document of an execution, about 400 bytes as JSON: built anew each time, as a worker does."""
    pid = 1000 + number % 30_000
    return {
        "event": {"kind": "event", "category": ["process"], "type": ["start"], "action": "exec"},
        "process": {
            "pid": pid,
            "entity_id": f"{pid:x}-{number:x}",
            "executable": "/usr/bin/python3.11",
            "command_line": "/usr/bin/python3.11 /usr/local/bin/collect --once --out /var/tmp/x",
            "parent": {"pid": 812, "executable": "/usr/sbin/cron"},
        },
        "user": {"id": "0", "name": "root"},
    }
