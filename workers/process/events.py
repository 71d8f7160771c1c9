"""ECS documents of this module. Field names follow the Elastic Common Schema 8 where it has one.

Beyond it: ``process.tty.name``, ``user.audit`` (the user who logged in, as Auditbeat has it), parents nested
below ``process.parent``, and ``garrison.*`` for what is ours.
"""

from __future__ import annotations

import time
from typing import Any, Final

from garrison.workers.process import procfs
from garrison.workers.process.alerts import Key
from garrison.workers.process.detect import base
from garrison.workers.process.facts import Image, Process
from garrison.workers.process.rules import Rule
from garrison.workers.process.sockets import Connection
from garrison.workers.users import Users

PARENT_ARGS: Final = 256
"""Most characters of a parent's command line."""


def text(value: str) -> str:
    r"""Return a name as valid text: bytes that are no UTF-8 become ``\xff``."""
    if value.isascii():
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Documents:
    """Makes documents of facts.

    Args:
        users: Where names of users come from.
    """

    def __init__(self, users: Users) -> None:
        self._users = users
        self._boot_id = procfs.boot_id()
        self._ticks = procfs.clock_ticks()
        self._epoch = 0.0
        self.sync_clock()

    def sync_clock(self) -> None:
        """Take the offset between the boot clock and the wall clock anew; the wall clock may have been set."""
        self._epoch = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def process(self, process: Process, parents: list[Process]) -> dict[str, Any]:
        """Return the ``process`` field set.

        Args:
            process: The process.
            parents: Its ancestors, nearest first.
        """
        fields = self._identity(process)
        image = process.image
        if image is not None:
            _add_image(fields, image)
        if parents:
            fields["parent"] = self._parents(parents)
        elif process.ppid:
            fields["parent"] = {"pid": process.ppid}
        return fields

    def who(self, process: Process, now: float) -> dict[str, Any]:
        """Return the top-level field sets ``user`` and ``container``; `now` is monotonic."""
        image = process.image
        fields: dict[str, Any] = {}
        if image is None:
            return fields
        if image.uid >= 0:
            user = self._user(image.uid, now)
            if image.euid not in (image.uid, -1):
                user["effective"] = self._user(image.euid, now)
            if image.login_uid >= 0:
                user["audit"] = self._user(image.login_uid, now)
            fields["user"] = user
        if image.container is not None:
            container = {"id": image.container.id}
            if image.container.runtime:
                container["runtime"] = image.container.runtime
            fields["container"] = container
        return fields

    def _identity(self, process: Process) -> dict[str, Any]:
        fields: dict[str, Any] = {"pid": process.pid}
        if process.start_ticks:
            fields["entity_id"] = f"{self._boot_id}-{process.pid}-{process.start_ticks}"
            fields["start"] = iso(self._epoch + process.start_ticks / self._ticks)
        return fields

    def _user(self, uid: int, now: float) -> dict[str, Any]:
        name = self._users.name(uid, now)
        return {"id": str(uid)} if name is None else {"id": str(uid), "name": name}

    def _parents(self, parents: list[Process]) -> dict[str, Any]:
        inner: dict[str, Any] | None = None
        for parent in reversed(parents):
            fields: dict[str, Any] = {"pid": parent.pid}
            if parent.start_ticks:
                fields["entity_id"] = f"{self._boot_id}-{parent.pid}-{parent.start_ticks}"
            image = parent.image
            if image is not None:
                if image.name:
                    fields["name"] = text(base(image.executable) or image.name)
                if image.executable:
                    fields["executable"] = text(image.executable)
                if image.args:
                    fields["command_line"] = text(" ".join(image.args)[:PARENT_ARGS])
            if inner is not None:
                fields["parent"] = inner
            elif parent.ppid:
                fields["parent"] = {"pid": parent.ppid}
            inner = fields
        return inner or {}


def _add_image(fields: dict[str, Any], image: Image) -> None:
    name = base(image.executable) or image.name
    if name:
        fields["name"] = text(name)
    if image.executable:
        fields["executable"] = text(image.executable)
    if image.args:
        args = [text(arg) for arg in image.args]
        fields["args"] = args
        # The number of arguments is only known where all of them were read.
        if not image.args_truncated:
            fields["args_count"] = len(args)
        fields["command_line"] = " ".join(args)
    if image.cwd:
        fields["working_directory"] = text(image.cwd)
    if image.tty:
        major, minor = procfs.tty_numbers(image.tty)
        fields["tty"] = {"char_device": {"major": major, "minor": minor}, "name": procfs.tty_name(image.tty)}
    if image.session:
        fields["session_leader"] = {"pid": image.session}
        fields["group_leader"] = {"pid": image.group}


def iso(seconds: float) -> str:
    """Return seconds since the epoch in ISO 8601, UTC, with milliseconds."""
    whole, milli = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milli:03d}Z"


def process_event(
    action: str, kind: str, origin: str, process: dict[str, Any], who: dict[str, Any], tags: list[str]
) -> dict[str, Any]:
    """Return the document of an exec, fork or exit.

    Args:
        action: ``exec``, ``fork`` or ``exit``.
        kind: ``event.type``: ``start`` or ``end``.
        origin: ``event.provider``: ``connector``, ``poll``, ``resync``, ``start`` or ``recheck``.
        process: Field set of the process.
        who: Further field sets.
        tags: ``tags``; left out where empty.
    """
    document: dict[str, Any] = {
        "event": {"kind": "event", "category": ["process"], "type": [kind], "action": action, "provider": origin},
        "process": process,
        **who,
    }
    if tags:
        document["tags"] = tags
    return document


def alert(
    rule: Rule,
    origin: str,
    message: str,
    process: dict[str, Any],
    who: dict[str, Any],
    *,
    tags: list[str],
    held: int = 0,
) -> dict[str, Any]:
    """Return the document of an alert; `held` is how many like it were held back before."""
    technique: dict[str, Any] = {"id": [rule.technique[0]], "name": [rule.technique[1]]}
    if rule.subtechnique is not None:
        technique["subtechnique"] = {"id": [rule.subtechnique[0]], "name": [rule.subtechnique[1]]}
    document: dict[str, Any] = {
        "event": {
            "kind": "alert",
            "category": ["process", "intrusion_detection"],
            "type": ["info"],
            "action": rule.id,
            "provider": origin,
            "severity": rule.severity,
        },
        "message": message,
        "rule": {"id": rule.id, "name": rule.name, "description": rule.description, "category": "process"},
        "threat": {
            "framework": "MITRE ATT&CK",
            "tactic": {"id": [rule.tactic[0]], "name": [rule.tactic[1]]},
            "technique": technique,
        },
        "process": process,
        **who,
    }
    if held:
        document["garrison"] = {"repeats": held}
    if tags:
        document["tags"] = tags
    return document


def connection(found: Connection) -> dict[str, Any]:
    """Return ``source``, ``destination`` and ``network``; the source is who opened the connection."""
    local = _endpoint(found.local_address, found.local_port)
    remote = _endpoint(found.remote_address, found.remote_port)
    fields: dict[str, Any] = {"network": {"transport": found.transport}}
    if found.inbound is not None:
        fields["network"]["direction"] = "inbound" if found.inbound else "outbound"
    if remote:
        fields["source"], fields["destination"] = (remote, local) if found.inbound else (local, remote)
    return fields


def _endpoint(address: str, port: int) -> dict[str, Any]:
    return {"address": address, "ip": address, "port": port} if address else {}


def state(action: str, message: str, details: dict[str, Any]) -> dict[str, Any]:
    """Return a document about the worker itself."""
    return {
        "event": {"kind": "state", "category": ["process"], "type": ["info"], "action": action},
        "message": message,
        "garrison": details,
    }


def metric(counters: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the worker's counters."""
    return {
        "event": {"kind": "metric", "category": ["process"], "type": ["info"], "action": "process-stats"},
        "garrison": {"process": counters},
    }


def suppressed(counts: dict[Key, int], forgotten: int) -> dict[str, Any]:
    """Return the document about alerts that were held back and not told of since."""
    total = sum(counts.values()) + forgotten
    top = sorted(counts.items(), key=lambda item: -item[1])[:20]
    findings = [
        {
            "rule": {"id": key.rule},
            "process": {"executable": text(key.executable), "parent": {"executable": text(key.parent)}},
            "user": {"id": str(key.uid)},
            "count": count,
        }
        for key, count in top
    ]
    return state(
        "alerts-suppressed",
        f"{total} alerts were held back as repeats or over the rate; the {len(findings)} most frequent are listed",
        {"suppressed": total, "findings": findings},
    )
