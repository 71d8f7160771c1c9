"""What of a store concerns one host: which keys are read, in which order, and which are watched. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from garrison.supervisor.keys import killswitch_keys, scopes_of, watch_prefixes
from garrison.supervisor.stores.etcd.results import Range, prefix_end

_TASKS = "task/"


class Aim(NamedTuple):
    """See `aim_at`.

    Attributes:
        groups: The host's groups.
        kill_keys: The killswitch keys that are obeyed.
        prefixes: What is watched; each ends in a slash, none contains another.
        lone_keys: Killswitch keys outside of all prefixes, watched one by one: of groups that the host has left.
        ranges: First key and end of each range that is read, the most important first.
    """

    groups: tuple[str, ...]
    kill_keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    lone_keys: tuple[str, ...]
    ranges: tuple[tuple[str, str], ...]


def aim_at(prefix: str, host: str, groups: Sequence[str], kill_groups: Iterable[str] = ()) -> Aim:
    """Return what concerns a host.

    Tasks are read last: what floods a host must not hide what stops its workers, and ``task/`` sorts before
    ``worker/``.

    Raises:
        KeyGrammarError: The hostname or a group name cannot stand in a key, or there are too many groups.
    """
    groups = tuple(dict.fromkeys(groups))
    prefixes = watch_prefixes(prefix, host, groups)
    kills = killswitch_keys(prefix, host, groups, kill_groups)
    lone = tuple(key for key in kills if not key.startswith(prefixes))
    first: list[tuple[str, str]] = [(key, "") for key in lone]
    last: list[tuple[str, str]] = []
    servers = {f"{prefix}/server/config/{scope}/" for scope in scopes_of(host, groups)}
    for one in prefixes:
        if one in servers:
            tasks = (one + _TASKS, prefix_end(one + _TASKS))
            first += [(one, tasks[0]), (tasks[1], prefix_end(one))]
            last.append(tasks)
        else:
            first.append((one, prefix_end(one)))
    return Aim(groups, kills, prefixes, lone, (*first, *last))


def whole(aim: Aim) -> tuple[Range, ...]:
    """Return one range for each watch, to count its keys and find its newest change; from the member itself."""
    ends = [(one, prefix_end(one)) for one in aim.prefixes] + [(key, "") for key in aim.lone_keys]
    return tuple(Range(key, end, limit=1, keys_only=True, newest_first=True, serializable=True) for key, end in ends)
