"""One history of a cluster, and how to tell that another one has begun. Pure.

Within one history revisions only grow, so what is newer is decided by comparing them. A cluster that was restored
from a snapshot goes on from an older revision, often under the same cluster id, and may have grown past the last
revision seen here by the time it is read again; therefore raft's term and the keys themselves are looked at too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from garrison.supervisor.keys import shown
from garrison.supervisor.stores.base import Entry
from garrison.supervisor.stores.etcd.results import Header, KeyValue


class History(NamedTuple):
    """What is known of the history that the last state came from.

    Attributes:
        cluster_id: 0: none is known.
        generation: How many histories of this cluster this agent has seen.
        revision: Highest revision seen.
        term: Highest raft term seen in a linearizable answer; 0: not known.
    """

    cluster_id: int = 0
    generation: int = 0
    revision: int = 0
    term: int = 0

    def __str__(self) -> str:
        """Return the name of the history, as it stands in `Snapshot.history`."""
        return f"etcd-{self.cluster_id:x}-{self.generation}" if self.cluster_id else ""


def remembered(history: str, revision: int) -> History:
    """Return the history that a cached snapshot names; an empty one where it comes from another kind of store."""
    parts = history.split("-")
    if len(parts) == 3 and parts[0] == "etcd" and parts[2].isdecimal():
        try:
            return History(int(parts[1], 16), int(parts[2]), revision)
        except ValueError:
            pass
    return History()


def judge(known: History, header: Header) -> tuple[History, str]:
    """Return the history after a linearizable answer, and why it is a new one ("" where it is not).

    The very first one is no change of anything.
    """
    if not known.cluster_id:
        return History(header.cluster_id, 1, header.revision, header.term), ""
    reason = ""
    if header.cluster_id != known.cluster_id:
        reason = f"it is another cluster ({header.cluster_id:x} instead of {known.cluster_id:x})"
    elif header.revision < known.revision:
        reason = f"its revision went back from {known.revision} to {header.revision}"
    elif header.term < known.term:
        reason = f"its raft term went back from {known.term} to {header.term}"
    if reason:
        return History(header.cluster_id, known.generation + 1, header.revision, header.term), reason
    return known._replace(revision=header.revision, term=max(known.term, header.term)), ""


def contradiction(before: Mapping[str, Entry], items: Iterable[KeyValue]) -> str:
    """Return why keys that were read cannot be of the same history as what was known of them; "" where they can.

    Args:
        before: What was known.
        items: What was read later.
    """
    for item in items:
        known = before.get(item.key)
        if known is None:
            continue
        if item.mod_revision < known.revision:
            return f"{shown(item.key)} went back from revision {known.revision} to {item.mod_revision}"
        if item.mod_revision == known.revision and known.value not in (b"", item.value):
            # Of a key that is unknown or too large no value is kept.
            return f"{shown(item.key)} has another value at the same revision {known.revision}"
    return ""


def renewed(known: History) -> History:
    """Return the next history of the same cluster."""
    return known._replace(generation=known.generation + 1)


def observed(known: History, revision: int) -> History:
    """Return the history after something of it was seen at a revision."""
    return known if revision <= known.revision else known._replace(revision=revision)
