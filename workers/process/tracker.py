"""What happens on the host becomes events and alerts here; `module` decides when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final, Literal

import msgspec

from garrison.workers.process import events, procfs, rules, shells
from garrison.workers.process.alerts import AlertGate, Key
from garrison.workers.process.cache import ProcessCache
from garrison.workers.process.connector import EXEC, EXIT, FORK, ProcEvent
from garrison.workers.process.detect import Finding, Policy, is_shell
from garrison.workers.process.facts import Process
from garrison.workers.process.recheck import Rechecks
from garrison.workers.process.scan import MAX_PROCESSES, ProcessTable, Seen
from garrison.workers.process.settings import Config
from garrison.workers.runtime.module import Sandbox
from garrison.workers.users import Users

Origin = Literal["connector", "poll", "resync", "start", "recheck"]

CHAIN: Final = 4
"""Parents that are reported."""

_PIPE_CHECKS: Final = 8
"""Most shells on pipes whose relatives are looked at in one tick."""

_SHELL_BITS: Final = rules.SHELL_SOCKET.bit | rules.SHELL_PIPE.bit | rules.SHELL_TERMINAL.bit

_NEARBY: Final = 64
"""Relatives of a shell that are considered before the nearest are taken."""


class Tracker:
    """Follows processes, reports execs, and raises alerts.

    Args:
        box: The module's sandbox.
        config: The settings in force.
        users: Where names of users come from.
    """

    def __init__(self, box: Sandbox, config: Config, users: Users | None = None) -> None:
        self._box = box
        self.config = config
        self.policy = Policy(config)
        self.cache = ProcessCache(config.cache_size)
        self.table = ProcessTable()
        self.rechecks = Rechecks()
        self._documents = events.Documents(users or Users())
        self._gate = AlertGate(config.repeat_seconds, config.alerts_per_minute, rules.HIGH)
        self._told_by_scan: dict[int, int] = {}
        self._told_until: int | None = None
        self._pipe_checks = 0
        self._ticked: float | None = None
        self.counts = dict.fromkeys(
            ("execs", "forks", "exits", "incomplete", "excluded", "alerts", "alerts_held", "scans", "overflows"), 0
        )

    def configure(self, config: Config) -> None:
        """Take new settings; what is known of processes stays."""
        self.config = config
        self.policy = Policy(config)
        self.cache.resize(config.cache_size)
        self._gate.limit(config.repeat_seconds, config.alerts_per_minute)

    def handle(self, event: ProcEvent) -> None:
        """Take one event of the connector."""
        if self._told_until is not None and event.timestamp_ns > self._told_until:
            # The queue has got past the look at /proc.
            self._told_by_scan.clear()
            self._told_until = None
        if event.what == EXEC:
            if self._told(event):
                return
            self.executed(event.pid, "connector")
        elif event.what == FORK:
            self.forked(event.parent, event.pid, "connector")
        elif event.what == EXIT:
            self.exited(event.pid, "connector", event.code)

    def handle_scan(self, seen: Seen, origin: Origin) -> None:
        """Take one difference that a look at /proc has shown."""
        if seen.change == "exit":
            self.exited(seen.pid, origin, None)
        elif seen.stat is not None:
            known = self.cache.peek(seen.pid)
            forked = seen.change == "fork" or (
                known is not None and known.forked and known.stamp != 0 and known.stamp == seen.stat.stamp
            )
            if forked and origin != "start":
                if known is None or known.exited is not None:
                    known = self.forked(seen.stat.ppid, seen.pid, origin)
                known.start_ticks = seen.stat.start_ticks
            else:
                self.executed(seen.pid, origin)

    def scan_ended(self) -> None:
        """Take the end of a look at /proc; what it has told of is kept until the connector's queue has got past it."""
        self._told_until = time.monotonic_ns() if self._told_by_scan else None
        self.counts["scans"] += 1

    def forked(self, parent: int, pid: int, origin: Origin) -> Process:
        """Take a fork."""
        self.counts["forks"] += 1
        child = self.cache.fork(parent, pid)
        if child.shell:
            # A subshell that stays may have been given a socket without any exec.
            self.rechecks.add(child, self._now())
        if self.config.fork_events:
            self._emit_process(child, "fork", "start", origin, [])
        return child

    def exited(self, pid: int, origin: Origin, code: int | None) -> None:
        """Take an exit; `code` is the wait status where it is known."""
        self.table.forget(pid)
        process = self.cache.exit(pid, self._now())
        if process is None:
            return
        self.counts["exits"] += 1
        if self.config.exit_events:
            fields = self._documents.process(process, [])
            if code is not None:
                # As a shell shows it: 128 and the signal for a process that was killed.
                fields["exit_code"] = 128 + (code & 0x7F) if code & 0x7F else code >> 8
            who = self._documents.who(process, self._now())
            self._box.emit(events.process_event("exit", "end", origin, fields, who, []))

    def executed(self, pid: int, origin: Origin) -> None:
        """Take an exec: read what /proc tells, report it, judge it."""
        known = self.cache.peek(pid)
        if known is not None and known.exited is not None:
            known = None
        inherited = known.image if known is not None else None
        if origin == "resync":
            if len(self._told_by_scan) >= MAX_PROCESSES:
                # Without a connector nothing empties it. At worst an exec is reported twice.
                self._told_by_scan.clear()
            self._told_by_scan[pid] = time.monotonic_ns()
            self._told_until = None
        process = procfs.read_process(pid, inherited, thrifty=self._box.degraded)
        self.counts["execs"] += 1
        if process is None or process.image is None:
            self._vanished(pid, known, origin)
            return
        if known is not None and known.ppid and known.start_ticks in (0, process.start_ticks):
            # Who forked it tells more than who has adopted it since.
            process.ppid = known.ppid
        process.shell = is_shell(process.image)
        self.cache.put(process)
        self.table.note(pid, process.start_ticks, process.stamp)
        if process.image.kernel:
            return
        self._report(process, origin)
        self.rechecks.add(process, self._now())

    def overflowed(self, lost: int | None, total: int | None) -> None:
        """Report that the connector has lost events.

        Args:
            lost: How many since the last report; None where the kernel does not say so.
            total: How many since the start.
        """
        how_many = "an unknown number of" if lost is None else str(lost)
        self._box.emit(
            events.state(
                "overflow",
                f"the kernel dropped {how_many} process events; /proc is read again for what is still there",
                {"lost": lost, "lost_total": total, "overflows": self.counts["overflows"]},
            )
        )

    def tick(self) -> None:
        """Look again at young processes, at shells, and at a share of all; about once a second."""
        now = self._now()
        elapsed = 1.0 if self._ticked is None else min(max(now - self._ticked, 0.0), 10.0)
        self._ticked = now
        self._pipe_checks = _PIPE_CHECKS
        self._documents.sync_clock()
        for process in self.rechecks.young(now):
            if self._lives(process):
                if not process.forked:
                    self._recheck_executable(process)
                if process.shell:
                    self._recheck_shell(process)
                    self.rechecks.add_shell(process)
        for process in self.rechecks.shells(elapsed):
            if self._lives(process):
                self._recheck_shell(process)
                self.rechecks.add_shell(process)
        if not self._box.degraded:
            fresh = [entry for entry in self.cache if entry.exited is None] if self.rechecks.sweep_done else None
            for process in self.rechecks.sweep(fresh, elapsed):
                if self._lives(process) and not process.forked:
                    self._recheck_executable(process)
        self._tell_suppressed(now)

    def tell_held(self) -> None:
        """Report the alerts that are still held back: the worker is about to end, and none will follow."""
        self._tell_suppressed(float("inf"))

    def statistics(self) -> dict[str, Any]:
        """Return the counters and sizes."""
        return {
            **self.counts,
            "known": len(self.cache),
            "table": len(self.table),
            "rechecks_skipped": self.rechecks.skipped,
        }

    def chain(self, process: Process, depth: int = CHAIN) -> list[Process]:
        """Return the ancestors, nearest first; such as are not remembered are read from /proc."""
        found = list(self.cache.ancestors(process, depth))
        last = found[-1] if found else process
        while len(found) < depth and last.ppid and not self._box.degraded:
            known = self.cache.peek(last.ppid)
            if known is not None:
                # Remembered, and still no ancestor: the pid has another owner now.
                break
            parent = procfs.read_process(last.ppid)
            if parent is None or (last.start_ticks and parent.start_ticks > last.start_ticks):
                break
            parent.shell = is_shell(parent.image)
            self.cache.put(parent)
            found.append(parent)
            last = parent
        return found

    def _now(self) -> float:
        return self._box.clock.monotonic()

    def _told(self, event: ProcEvent) -> bool:
        """Return whether a resynchronisation was faster than the queue and has reported this exec."""
        told = self._told_by_scan.pop(event.pid, None)
        # Both are of the monotonic clock. What has executed since /proc was read for the report is news.
        return told is not None and event.timestamp_ns < told

    def _tell_suppressed(self, now: float) -> None:
        held = self._gate.expire(now)
        if held or self._gate.forgotten:
            self._box.emit(events.suppressed(held, self._gate.forgotten))
            self._gate.forgotten = 0

    def _lives(self, process: Process) -> bool:
        return process.exited is None and self.cache.peek(process.pid) is process

    def _vanished(self, pid: int, known: Process | None, origin: Origin) -> None:
        """Report an exec whose process was gone before /proc was read: parent and user are what the fork told."""
        process = Process(pid=pid)
        image = None
        if known is not None:
            process.ppid, process.start_ticks = known.ppid, known.start_ticks
            image = known.image
        self.cache.put(process)
        self.counts["incomplete"] += 1
        if not self.config.exec_events or origin == "start":
            return
        fields = self._documents.process(process, self.chain(process, self._depth()))
        who = self._documents.who(Process(pid=pid, image=image), self._now())
        self._box.emit(events.process_event("exec", "start", origin, fields, who, self._tags(origin, complete=False)))

    def _report(self, process: Process, origin: Origin) -> None:
        image = process.image
        if image is None:
            return
        findings = [finding for finding in self.policy.judge(image) if self._counts(process, finding)]
        shell = self._inspect(process) if process.shell else None
        wanted = self.config.exec_events and origin != "start"
        if wanted and self.policy.excluded(image):
            self.counts["excluded"] += 1
            wanted = False
        if not image.complete:
            self.counts["incomplete"] += 1
        if not (wanted or findings or shell):
            return
        parents = self.chain(process, self._depth())
        fields = self._documents.process(process, parents)
        who = self._documents.who(process, self._now())
        tags = self._tags(origin, complete=image.complete)
        if wanted:
            self._box.emit(events.process_event("exec", "start", origin, fields, who, tags))
        for finding in findings:
            self._alert_path(process, finding, origin, parents, fields, who)
        if shell is not None:
            self._alert_shell(process, shell, origin, parents, fields, who)

    def _depth(self) -> int:
        return 1 if self._box.degraded else CHAIN

    def _tags(self, origin: Origin, *, complete: bool) -> list[str]:
        tags = [] if complete else ["incomplete"]
        if origin == "resync":
            tags.append("resync")
        return tags

    def _emit_process(self, process: Process, action: str, kind: str, origin: Origin, tags: list[str]) -> None:
        fields = self._documents.process(process, self.chain(process, 1))
        self._box.emit(
            events.process_event(action, kind, origin, fields, self._documents.who(process, self._now()), tags)
        )

    def _counts(self, process: Process, finding: Finding) -> bool:
        """Leave out what has alerted, and deleted executables in whose place another file is: an upgrade."""
        if process.alerted & finding.rule.bit:
            return False
        return (
            finding.rule is not rules.DELETED
            or self.policy.deleted_replaced
            or not procfs.replaced(process.pid, finding.path)
        )

    def _inspect(self, process: Process) -> shells.ShellFinding | None:
        """Look at a shell's descriptors; two links where nothing is to be found."""
        seen = shells.links(process.pid, 3)
        process.links = seen[:2]
        return shells.inspect(process, self.policy, self.chain(process), self._relatives(process), seen)

    def _relatives(self, process: Process) -> Iterator[Process]:
        """Yield living members of a shell's process group, then of its session, the nearest pids first."""
        image = process.image
        if image is None or not image.session:
            return
        near = [
            (entry.image.group != image.group, abs(entry.pid - process.pid), entry.pid, entry)
            for entry in self.cache
            if entry.exited is None and entry.image is not None and entry.image.session == image.session
        ]
        near.sort(key=lambda item: item[:3])
        for _, _, _, entry in near[:_NEARBY]:
            yield entry

    def _recheck_executable(self, process: Process) -> None:
        image = process.image
        if image is None or image.deleted or image.kernel:
            return
        path, deleted, memfd = procfs.executable_state(process.pid)
        if not deleted or memfd or path != image.executable:
            return
        gone = msgspec.structs.replace(image, deleted=True)
        process.image = gone
        for finding in self.policy.judge(gone):
            if finding.rule is rules.DELETED and self._counts(process, finding):
                self._alert_path(process, finding, "recheck")

    def _recheck_shell(self, process: Process) -> None:
        if process.alerted & _SHELL_BITS:
            return
        seen = shells.links(process.pid, 2)
        before, process.links = process.links, seen
        through_pipe = process.image is not None and seen[0] != seen[1] and "pipe:" in seen[0] + seen[1]
        if seen == before and not through_pipe:
            return
        if through_pipe:
            if self._pipe_checks <= 0:
                return
            self._pipe_checks -= 1
        found = self._inspect(process)
        if found is not None:
            self._alert_shell(process, found, "recheck")

    def _alert_path(
        self,
        process: Process,
        finding: Finding,
        origin: Origin,
        parents: list[Process] | None = None,
        fields: dict[str, Any] | None = None,
        who: dict[str, Any] | None = None,
    ) -> None:
        message = f"{finding.rule.name}: {events.text(finding.path)} (pid {process.pid})"
        extra = {"file": {"path": events.text(finding.path)}}
        self._alert(process, finding.rule, finding.path, message, extra, origin, parents, fields, who)

    def _alert_shell(
        self,
        process: Process,
        found: shells.ShellFinding,
        origin: Origin,
        parents: list[Process] | None = None,
        fields: dict[str, Any] | None = None,
        who: dict[str, Any] | None = None,
    ) -> None:
        name = process.image.executable if process.image else ""
        peer = found.connection
        where = f"{peer.remote_address}:{peer.remote_port}" if peer.remote_address else "an address that was not found"
        message = f"{found.rule.name}: {events.text(name)} (pid {process.pid}) with {where}"
        extra = events.connection(peer)
        if found.holder is not process:
            holder = self._documents.process(found.holder, [])
            extra["garrison"] = {"holder": {"process": holder, "fd": found.fd}}
        else:
            extra["garrison"] = {"fd": found.fd}
        self._alert(process, found.rule, name, message, extra, origin, parents, fields, who)

    def _alert(
        self,
        process: Process,
        rule: rules.Rule,
        subject: str,
        message: str,
        extra: dict[str, Any],
        origin: Origin,
        parents: list[Process] | None,
        fields: dict[str, Any] | None,
        who: dict[str, Any] | None,
    ) -> None:
        process.alerted |= rule.bit
        if parents is None:
            parents = self.chain(process)
        parent = parents[0].image.executable if parents and parents[0].image else ""
        uid = process.image.uid if process.image else -1
        held = self._gate.admit(Key(rule.id, subject, parent, uid), rule.severity, self._now())
        if held is None:
            self.counts["alerts_held"] += 1
            return
        self.counts["alerts"] += 1
        fields = self._documents.process(process, parents) if fields is None else fields
        who = self._documents.who(process, self._now()) if who is None else who
        document = events.alert(rule, origin, message, fields, who, tags=self._tags(origin, complete=True), held=held)
        ours = {**document.get("garrison", {}), **extra.pop("garrison", {})}
        document.update(extra)
        if ours:
            document["garrison"] = ours
        self._box.emit(document)
