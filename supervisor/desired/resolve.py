"""From a snapshot to what is desired: the one code path for every store. Pure; any bytes give a result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from garrison.supervisor.desired.model import (
    DEFAULT,
    LOCAL,
    Context,
    Desired,
    MasterDesired,
    Memory,
    ResetMemory,
    WorkerBase,
    WorkerDesired,
    short_hash,
)
from garrison.supervisor.desired.slots import Decision, Slots, bounded
from garrison.supervisor.keys import (
    KafkaKey,
    Key,
    KillswitchKey,
    MasterKey,
    PluginKey,
    Scope,
    UnknownKeyError,
    WorkerKey,
    WorkerLogLevelKey,
    WorkerResetKey,
    format_key,
    nearest,
    parse_key,
    scopes_of,
    shown,
)
from garrison.supervisor.stores.base import Entry, Snapshot
from garrison.supervisor.stores.values import (
    MAX_INLINE_BYTES,
    MAX_VALUE_BYTES,
    Action,
    MasterSettings,
    ValueRefusedError,
    action_of,
    document_of,
    kafka_servers_of,
    kafka_topic_of,
    killswitch_of,
    log_level_of,
    master_of,
    object_of,
    rules_of,
)

T = TypeVar("T")

_SEVERITY: dict[Action, int] = {"start": 0, "freeze": 1, "stop": 2}


def resolve(snapshot: Snapshot, context: Context, memory: Memory | None = None) -> tuple[Desired, Memory]:
    """Return what this host should do, and what the next call needs to know of this one.

    The result depends on the arguments alone. A value that cannot be used never raises: it is refused, and what was
    in force stays.

    Raises:
        KeyGrammarError: The hostname or the groups of the context cannot stand in a key.
    """
    memory = memory or Memory()
    slots = Slots(snapshot, context, memory)
    groups, groups_by = _groups(slots, context)
    scopes = scopes_of(context.host, groups)
    complete = snapshot.groups is None or set(groups) <= set(snapshot.groups)
    master = _master(slots, context, scopes)
    kafka_servers = _single(slots, context, "host", kafka_servers_of)
    kafka_topic = _single(slots, context, "topic", kafka_topic_of)
    workers: dict[str, WorkerDesired] = {}
    resets: dict[str, ResetMemory] = {}
    for name in sorted(context.workers):
        workers[name], resets[name] = _worker(slots, context, scopes, memory, name)
    _report_strangers(slots, context, scopes)
    desired = Desired(
        complete=complete,
        revision=snapshot.revision,
        history=snapshot.history,
        groups=groups,
        groups_by=groups_by,
        workers=workers,
        master=master,
        kafka_servers=kafka_servers.value if kafka_servers else (),
        kafka_topic=kafka_topic.value if kafka_topic else "",
        kafka_by=tuple(found.key for found in (kafka_servers, kafka_topic) if found),
        missing_bodies=tuple(sorted(slots.missing)),
        problems=bounded((*slots.problems, *snapshot.problems)),
    )
    if complete:
        return desired, Memory(snapshot.history, slots.accepted, resets)
    # Keys of groups that were not looked at are not absent: nothing is learnt from this snapshot but the groups.
    kept = {slot: value for slot, value in memory.slots.items() if slot != "groups"}
    if "groups" in slots.accepted:
        kept["groups"] = slots.accepted["groups"]
    return desired, msgspec.structs.replace(memory, slots=kept)


def _groups(slots: Slots, context: Context) -> tuple[tuple[str, ...], str]:
    """Decide the groups first, from the documents that do not depend on them: the host's own and @all's.

    A document without ``groups`` does not take part, so that one written for another reason moves no host.
    """
    keys = []
    for scope in scopes_of(context.host, ()):
        key = format_key(MasterKey(scope), context.prefix)
        entry = slots.entries.get(key)
        if entry is None or _names_groups(entry):
            keys.append(key)
    decision = slots.decide("groups", keys, _bare(_groups_of), limit=MAX_VALUE_BYTES)
    if decision is None:
        return tuple(dict.fromkeys(context.groups)), DEFAULT
    return decision.value, decision.key


def _names_groups(entry: Entry) -> bool:
    """Tell whether a master document takes part in the decision on groups; one that fails its check does."""
    if entry.error:
        return True
    try:
        return master_of(entry.value).groups is not None
    except ValueRefusedError:
        return True


def _groups_of(value: bytes) -> tuple[str, ...]:
    groups = master_of(value).groups
    if groups is None:
        raise ValueRefusedError("it names no groups")
    return tuple(dict.fromkeys(groups))


def _master(slots: Slots, context: Context, scopes: tuple[Scope, ...]) -> MasterDesired:
    def check(value: bytes, _: int) -> tuple[MasterSettings, Any]:
        settings = master_of(value)
        if settings.aggregate is None:
            return settings, context.aggregate
        return settings, context.check_aggregate(settings.aggregate, context.aggregate)

    keys = {format_key(MasterKey(scope), context.prefix): scope for scope in scopes}
    decision = slots.decide("master", list(keys), check, limit=MAX_VALUE_BYTES)
    if decision is None:
        return MasterDesired(aggregate=context.aggregate)
    settings, aggregate = decision.value
    scope = keys.get(decision.key)  # None: kept from a group that the host has left
    if settings.groups is not None and scope is not None and scope.kind == "group":
        slots.refuse(decision.key, "groups: a group cannot change which groups a host is in; the other fields hold")
    return MasterDesired(
        log_level=settings.log_level,
        heartbeat_seconds=settings.heartbeat_seconds,
        release_spread=settings.release_spread,
        aggregate=aggregate,
        sink=settings.sink,
        decided_by=decision.key,
        revision=decision.revision,
    )


def _single(slots: Slots, context: Context, name: str, parse: Callable[[bytes], T]) -> Decision[T] | None:
    key = format_key(KafkaKey(name), context.prefix)
    return slots.decide(f"kafka/{name}", [key], _bare(parse), limit=MAX_VALUE_BYTES)


def _bare(parse: Callable[[bytes], T]) -> Callable[[bytes, int], T]:
    return lambda value, _: parse(value)


def _worker(
    slots: Slots, context: Context, scopes: tuple[Scope, ...], memory: Memory, name: str
) -> tuple[WorkerDesired, ResetMemory]:
    base = context.workers[name]
    first_problem = len(slots.problems)

    def scoped(make: Callable[[Scope], Key]) -> list[str]:
        return [format_key(make(scope), context.prefix) for scope in scopes]

    def plain(slot: str, make: Callable[[Scope], Key], parse: Callable[[bytes], T]) -> Decision[T] | None:
        return slots.decide(f"worker/{name}/{slot}", scoped(make), _bare(parse), limit=MAX_VALUE_BYTES)

    def document(slot: str, check: Callable[[bytes, int], T]) -> Decision[T] | None:
        keys = scoped(lambda scope: PluginKey(scope, name, slot))
        return slots.decide(f"worker/{name}/{slot}", keys, check, limit=MAX_INLINE_BYTES, document=True)

    action = plain("action", lambda scope: WorkerKey(scope, name), action_of)
    level = plain("log_level", lambda scope: WorkerLogLevelKey(scope, name), log_level_of)
    settings = document("settings", object_of)
    rules = document("rules", rules_of)
    budget = document("budget", _budget_check(context, base))
    reset_keys = scoped(lambda scope: WorkerResetKey(scope, name))
    reset = _reset(slots, reset_keys, memory.resets.get(name, ResetMemory()))

    wanted, by = _with_local(action, context.local.get(name))
    merged = dict(base.settings) | (settings.value if settings else {})
    log_level = level.value if level else base.log_level
    decisions: list[Decision[Any] | None] = [action, level, settings, rules, budget]
    return (
        WorkerDesired(
            action=wanted,
            decided_by=by,
            settings=merged,
            settings_by=settings.key if settings else DEFAULT,
            budget=budget.value if budget else base.budget,
            budget_by=budget.key if budget else DEFAULT,
            log_level=log_level,
            log_level_by=level.key if level else DEFAULT,
            rules=rules.value if rules else None,
            rules_by=rules.key if rules else DEFAULT,
            reset_token=reset.token,
            revision=max((decision.revision for decision in decisions if decision), default=0),
            hash=short_hash(merged, log_level, *([rules.value] if rules else [])),
            problems=bounded(slots.problems[first_problem:]),
        ),
        reset,
    )


def _budget_check(context: Context, base: WorkerBase) -> Callable[[bytes, int], Any]:
    return lambda value, limit: context.check_budget(document_of(value, limit), base.budget)


def _with_local(action: Decision[Action] | None, override: Action | None) -> tuple[Action, str]:
    """Put the local override over what the store says: whichever does more to the worker holds.

    So a local stop or freeze beats a start, a local start (no override) beats nothing, and a stop from the store
    beats a local freeze. Where both say the same the key is named: it is what a local start cannot change.
    """
    wanted: Action = action.value if action else "start"
    by = action.key if action else DEFAULT
    if override is not None and _SEVERITY[override] > _SEVERITY[wanted]:
        return override, LOCAL
    return wanted, by


def _reset(slots: Slots, keys: list[str], before: ResetMemory) -> ResetMemory:
    """Return the reset memory: the token changes when any scope has a value or a revision not seen before.

    Every scope counts, not the most specific one: a reset written for a host last year must not hide one
    written for all today. A key that goes changes nothing.
    """
    seen = {}
    for key in keys:
        entry = slots.entries.get(key)
        if entry is None:
            continue
        if entry.error:
            slots.refuse(key, entry.error)
            if key in before.seen:
                seen[key] = before.seen[key]
            continue
        seen[key] = f"{entry.revision}:{hashlib.sha256(entry.value).hexdigest()[:16]}"
    news = {key: mark for key, mark in seen.items() if before.seen.get(key) != mark}
    return ResetMemory(short_hash(before.token, news) if news else before.token, seen)


def _report_strangers(slots: Slots, context: Context, scopes: tuple[Scope, ...]) -> None:
    """Note keys that nothing here answers to, and killswitch values that nobody can read."""
    strange_workers: dict[str, str] = {}
    for text in sorted(slots.entries):
        try:
            key = parse_key(text, context.prefix)
        except UnknownKeyError as error:
            slots.refuse(text, str(error), "unknown")
            continue
        if getattr(key, "scope", scopes[0]) not in scopes:
            continue
        if isinstance(key, KillswitchKey):
            _check_killswitch(slots, text)
        worker = getattr(key, "worker", None)
        if worker is None or worker in context.workers:
            continue
        if worker not in strange_workers:
            strange_workers[worker] = nearest(worker, context.workers)
        near = strange_workers[worker]
        hint = f", nearest {near!r}" if near else ""
        slots.refuse(text, f"no worker {shown(worker)!r} is defined on this host{hint}", "unknown")
    for worker in sorted(set(context.local) - set(context.workers)):
        near = nearest(worker, context.workers)
        hint = f", nearest {near!r}" if near else ""
        slots.refuse(LOCAL, f"no worker {shown(worker)!r} is defined on this host{hint}", "unknown")


def _check_killswitch(slots: Slots, key: str) -> None:
    entry = slots.entries[key]
    try:
        if entry.error:
            raise ValueRefusedError(entry.error)
        killswitch_of(entry.value)
    except ValueRefusedError as error:
        slots.refuse(key, f"counts as engaged, because it cannot be read: {error}")
