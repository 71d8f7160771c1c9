"""ECS documents of this module. Field names follow the Elastic Common Schema 8; ``garrison.*`` is ours.

``garrison.previous`` holds the values of before for what has changed, ``garrison.changed`` their names.
"""

from __future__ import annotations

import os
import time
from typing import Any, Final

from garrison.ipc.pacing import TokenBucket
from garrison.workers.files.entry import DIRECTORY, FILE, LINK, UNHASHED, Action, Entry
from garrison.workers.files.pace import Pace
from garrison.workers.files.rules import Rule
from garrison.workers.files.targets import Target
from garrison.workers.runtime.encoding import utf8
from garrison.workers.runtime.module import Sandbox
from garrison.workers.users import Users

_TYPES: Final = {"created": "creation", "deleted": "deletion"}
_KINDS: Final = {FILE: "file", DIRECTORY: "dir", LINK: "symlink"}
_MAX_SECONDS: Final = 253_402_300_799
"""The end of the year 9999: later times are no valid timestamps."""


def iso(nanoseconds: int) -> str:
    """Return nanoseconds since the epoch in ISO 8601, UTC, with milliseconds."""
    seconds = min(max(nanoseconds // 10**9, 0), _MAX_SECONDS)
    milli = nanoseconds // 10**6 % 1000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milli:03d}Z"


class Names:
    """Names of owners and groups."""

    def __init__(self) -> None:
        self._users = Users()
        self._groups = Users("/etc/group")

    def user(self, uid: int, now: float) -> str | None:
        """Return a user's name; `now` is monotonic."""
        return self._users.name(uid, now)

    def group(self, gid: int, now: float) -> str | None:
        """Return a group's name; `now` is monotonic."""
        return self._groups.name(gid, now)


def file_fields(path: str, entry: Entry, names: Names, now: float) -> dict[str, Any]:
    """Return the ``file`` field set."""
    fields: dict[str, Any] = {
        "path": utf8(path),
        "name": utf8(path.rpartition("/")[2]),
        "directory": utf8(path.rpartition("/")[0] or "/"),
        "type": _KINDS.get(entry.kind, "other"),
        "uid": str(entry.uid),
        "gid": str(entry.gid),
        "mode": f"{entry.mode:04o}",
        "inode": str(entry.inode),
    }
    owner, group = names.user(entry.uid, now), names.group(entry.gid, now)
    if owner is not None:
        fields["owner"] = owner
    if group is not None:
        fields["group"] = group
    if entry.kind != DIRECTORY:
        fields["size"] = entry.size
        fields["mtime"] = iso(entry.mtime_ns)
        fields["ctime"] = iso(entry.ctime_ns)
    if entry.sha256 is not None:
        fields["hash"] = {"sha256": entry.sha256.hex()}
    if entry.link is not None:
        fields["target_path"] = utf8(os.fsdecode(entry.link))
    return fields


def previous_fields(changed: tuple[str, ...], old: Entry, names: Names, now: float) -> dict[str, Any]:
    """Return the values of before of what has changed."""
    fields: dict[str, Any] = {}
    for name in changed:
        if name == "type":
            fields["type"] = _KINDS.get(old.kind, "other")
        elif name in ("sha256", "content"):
            if old.sha256 is not None:
                fields["hash"] = {"sha256": old.sha256.hex()}
        elif name == "target":
            if old.link is not None:
                fields["target_path"] = utf8(os.fsdecode(old.link))
        elif name == "mode":
            fields["mode"] = f"{old.mode:04o}"
        elif name == "owner":
            fields["uid"] = str(old.uid)
            owner = names.user(old.uid, now)
            if owner is not None:
                fields["owner"] = owner
        elif name == "group":
            fields["gid"] = str(old.gid)
            group = names.group(old.gid, now)
            if group is not None:
                fields["group"] = group
        elif name == "mtime":
            fields["mtime"] = iso(old.mtime_ns)
        elif name == "inode":
            fields["inode"] = str(old.inode)
        elif name == "size":
            fields["size"] = old.size
    return fields


def state(action: str, message: str, details: dict[str, Any]) -> dict[str, Any]:
    """Return a document about the worker itself."""
    return {
        "event": {"kind": "state", "category": ["file"], "type": ["info"], "action": action},
        "message": message,
        "garrison": {"files": details},
    }


def metric(counters: dict[str, Any]) -> dict[str, Any]:
    """Return the document with the worker's counters."""
    return {
        "event": {"kind": "metric", "category": ["file"], "type": ["info"], "action": "files-stats"},
        "garrison": {"files": counters},
    }


def rule_fields(rule: Rule) -> dict[str, Any]:
    """Return ``rule`` and ``threat``."""
    technique: dict[str, Any] = {"id": [rule.technique[0]], "name": [rule.technique[1]]}
    if rule.subtechnique is not None:
        technique["subtechnique"] = {"id": [rule.subtechnique[0]], "name": [rule.subtechnique[1]]}
    return {
        "rule": {"id": rule.id, "name": rule.name, "description": rule.description, "category": "file"},
        "threat": {
            "framework": "MITRE ATT&CK",
            "tactic": {"id": [rule.tactic[0]], "name": [rule.tactic[1]]},
            "technique": technique,
        },
    }


class Reporter:
    """Sends what has changed, alerts and events, each counted.

    Args:
        box: The sandbox.
        pace: Told of each event.
        alerts_per_minute: Most alerts; further ones leave as events.
    """

    def __init__(self, box: Sandbox, pace: Pace, alerts_per_minute: float) -> None:
        self._box = box
        self._pace = pace
        self._names = Names()
        self._alerts = TokenBucket(alerts_per_minute / 60, alerts_per_minute)
        self.counts: dict[str, int] = dict.fromkeys(
            ("created", "modified", "attributes", "renamed", "deleted", "alerts", "alerts_limited", "dropped"), 0
        )
        self._limited_told = 0

    def limit(self, alerts_per_minute: float) -> None:
        """Change the rate of alerts."""
        self._alerts.limit(alerts_per_minute / 60, alerts_per_minute)

    def state(self, action: str, message: str, details: dict[str, Any]) -> None:
        """Send something about the worker itself."""
        self._box.emit(state(action, message, details))

    def change(
        self,
        action: Action,
        path: str,
        entry: Entry,
        target: Target | None,
        origin: str,
        *,
        old: Entry | None = None,
        changed: tuple[str, ...] = (),
        was: str = "",
        replaced: Entry | None = None,
        offline: bool = False,
    ) -> None:
        """Send a change.

        Args:
            action: What happened.
            path: Where.
            entry: What is there now; of something deleted, what was there.
            target: The target that covers it.
            origin: ``event.provider``: ``inotify``, ``scan`` or ``poll``.
            old: What was there before.
            changed: What differs.
            was: The path before a rename.
            replaced: What a rename has overwritten.
            offline: It happened while the agent was off.
        """
        now = self._box.clock.monotonic()
        self.counts[action] += 1
        rule = target.rule if target is not None else None
        alert = rule is not None and rule.alert
        tags: list[str] = ["offline"] if offline else []
        if alert and not self._alerts.admit(1, now):
            alert = False
            self.counts["alerts_limited"] += 1
            tags.append("alert-limited")
        inner: dict[str, Any] = {
            "kind": "alert" if alert else "event",
            "category": ["file", "intrusion_detection"] if alert else ["file"],
            "type": [_TYPES.get(action, "change")],
            "action": action,
            "provider": origin,
        }
        document: dict[str, Any] = {"event": inner, "file": file_fields(path, entry, self._names, now)}
        if rule is not None:
            inner["severity"] = rule.severity
            document.update(rule_fields(rule))
            document["message"] = f"{rule.name}: {utf8(path)} {action}"
        details: dict[str, Any] = {}
        if changed:
            details["changed"] = list(changed)
        previous = previous_fields(changed, old, self._names, now) if old is not None else {}
        if was:
            previous["path"] = utf8(was)
        if previous:
            details["previous"] = previous
        if replaced is not None:
            details["replaced"] = file_fields(path, replaced, self._names, now)
        if entry.flags & UNHASHED:
            details["unhashed"] = True
        if details:
            document["garrison"] = details
        if tags:
            document["tags"] = tags
        self.counts["alerts"] += alert
        self._pace.event(now)
        if not self._box.emit(document):
            self.counts["dropped"] += 1

    def tell_limited(self) -> None:
        """Say that alerts have left as events, once for what has come together since the last time."""
        limited = self.counts["alerts_limited"] - self._limited_told
        if limited:
            self._limited_told += limited
            self.state(
                "alerts-limited",
                f"{limited} alerts over the rate have left as events with the tag alert-limited",
                {"limited": limited},
            )
