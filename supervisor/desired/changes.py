"""What differs between two results: the material of ``state`` events. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from garrison.supervisor.desired.model import DEFAULT, Desired, WorkerDesired, short_hash


class Change(msgspec.Struct, frozen=True, order=True):
    """One thing that has changed, or was refused.

    Attributes:
        slot: ``process/action``, ``master``, ``groups``, ``kafka``; empty for a refusal.
        key: The key that decides now, ``local`` or ``default``; for a refusal the key that was refused.
        old_hash: Of the value before; empty where there was none.
        new_hash: Of the value now; empty where there is none, and for a refusal.
        accepted: False for a refusal.
        reason: Of the refusal.
        revision: Of the key where that is known, else of the snapshot.
    """

    slot: str
    key: str
    old_hash: str
    new_hash: str
    accepted: bool
    reason: str = ""
    revision: int = 0


def changes(old: Desired | None, new: Desired) -> list[Change]:
    """Return what is different in `new`, sorted by slot, and what is newly refused, sorted by key.

    Without `old` everything that a key or a local command decides counts as new.
    """
    before = dict(_slots(old)) if old is not None else {}
    after = dict(_slots(new))
    found = []
    for slot in sorted(before.keys() | after.keys()):
        old_key, old_hash = before.get(slot, ("", ""))
        key, new_hash = after.get(slot, ("", ""))
        if old is None and key == DEFAULT:
            continue
        if (old_key, old_hash) != (key, new_hash):
            found.append(Change(slot, key, old_hash, new_hash, accepted=True, revision=new.revision))
    known = set(old.problems) if old is not None else set()
    found.extend(
        Change("", problem.key, "", "", accepted=False, reason=problem.reason, revision=problem.revision)
        for problem in new.problems
        if problem not in known
    )
    return found


def _slots(desired: Desired) -> Iterator[tuple[str, tuple[str, str]]]:
    yield "groups", (desired.groups_by, short_hash(desired.groups))
    master = desired.master
    content = msgspec.structs.replace(master, decided_by="", revision=0)
    yield "master", (master.decided_by, short_hash(content))
    kafka = (desired.kafka_servers, desired.kafka_topic)
    yield "kafka", (",".join(desired.kafka_by) or DEFAULT, short_hash(kafka))
    for name, worker in desired.workers.items():
        for slot, decided in _worker_slots(worker):
            yield f"{name}/{slot}", decided


def _worker_slots(worker: WorkerDesired) -> Iterator[tuple[str, tuple[str, str]]]:
    yield "action", (worker.decided_by, short_hash(worker.action))
    yield "settings", (worker.settings_by, short_hash(worker.settings))
    yield "budget", (worker.budget_by, short_hash(worker.budget))
    yield "log_level", (worker.log_level_by, short_hash(worker.log_level))
    yield "rules", (worker.rules_by, short_hash(worker.rules))
    yield "reset", ("reset" if worker.reset_token else DEFAULT, short_hash(worker.reset_token))
