"""What goes to etcd and what comes back, as small immutable values without any protobuf in them. Pure.

Keys are text. One that is no UTF-8 comes back with surrogate escapes (`str.isprintable` is False for it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Target: TypeAlias = Literal["version", "create", "mod", "lease", "value"]
Relation: TypeAlias = Literal["=", ">", "<", "!="]


class Header(NamedTuple):
    """Who answered, and as of when.

    Attributes:
        cluster_id: Of the cluster; a restored one may keep it.
        member_id: Of the member that answered.
        revision: Of the member's database when it answered.
        term: Of raft, as this member knows it; grows within one history of a cluster.
    """

    cluster_id: int
    member_id: int
    revision: int
    term: int


class KeyValue(NamedTuple):
    """One key as etcd holds it. ``value`` is empty where only keys were asked for."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class Range(NamedTuple):
    """A read: one key, or with ``end`` all keys from ``key`` up to and without it (see `prefix_end`).

    Attributes:
        key: The first key.
        end: Where the range ends; empty: this one key.
        limit: Most keys that come back; 0: all.
        revision: As of when; 0: now.
        keys_only: Leave the values out.
        count_only: Only count.
        newest_first: The key that changed last comes first; together with ``limit=1`` that is the newest change.
        min_mod_revision: Only keys that changed at this revision or later (they still all count); 0: all.
        serializable: From this member's own database, which may be behind; costs the cluster nothing.
    """

    key: str
    end: str = ""
    limit: int = 0
    revision: int = 0
    keys_only: bool = False
    count_only: bool = False
    newest_first: bool = False
    min_mod_revision: int = 0
    serializable: bool = False


class Put(NamedTuple):
    """A write; ``lease`` 0: on no lease."""

    key: str
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """A deletion of one key."""

    key: str


Op: TypeAlias = Range | Put | Delete


class Compare(NamedTuple):
    """A condition of a transaction: the key's `target` is in `relation` to `value`.

    A key that is absent has version, create and mod revision 0: ``Compare(key, "version", "=", 0)``.
    """

    key: str
    target: Target
    relation: Relation
    value: int | bytes


@dataclass(frozen=True, slots=True)
class Page:
    """The answer to a `Range`.

    Attributes:
        header: Of the answer.
        items: The keys.
        more: There are more than the limit.
        count: How many there are in the range, whatever the limit.
    """

    header: Header
    items: tuple[KeyValue, ...]
    more: bool
    count: int


class TxnResult(NamedTuple):
    """The answer to a transaction.

    Attributes:
        header: Of the answer; its revision is that of the writes in it.
        succeeded: All conditions held, so the success operations were done; else the failure operations.
        answers: One for each operation that was done: a `Page` for a `Range`; for a `Put` None; for a `Delete`
            the number of deleted keys.
    """

    header: Header
    succeeded: bool
    answers: tuple[Page | int | None, ...]

    def page(self, index: int = 0) -> Page:
        """Return the answer to the operation at `index`, which was a `Range`."""
        answer = self.answers[index]
        assert isinstance(answer, Page)
        return answer


class Grant(NamedTuple):
    """A lease: its id, and the seconds that the server gives it without a renewal."""

    id: int
    ttl: int


class Event(NamedTuple):
    """One change of a key. For a deletion ``value`` is empty."""

    key: str
    value: bytes
    mod_revision: int
    deleted: bool


class WatchNews(NamedTuple):
    """One message of a watch stream.

    Attributes:
        header: Of the message. A message without events and with nothing else set is a progress notification:
            everything up to the header's revision has been delivered.
        events: In their order.
        created: A watch that was asked for has begun.
        canceled: A watch has ended; the reason is in ``reason``.
        compact_revision: Above 0: it ended because its revision is compacted; this one is still there.
        reason: Why it ended, in the server's words.
    """

    header: Header
    events: tuple[Event, ...]
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    reason: str = ""


class MemberStatus(NamedTuple):
    """What a member says of itself; ``leader`` is 0 where it knows none."""

    header: Header
    version: str
    leader: int
    db_size: int


def prefix_end(prefix: str) -> str:
    """Return where the range of all keys that start with `prefix` ends.

    Raises:
        ValueError: The prefix does not end in ``/``: it would reach into the neighbour's keys.
    """
    if not prefix.endswith("/"):
        raise ValueError(f"the prefix {prefix!r} does not end in a slash")
    return prefix[:-1] + "0"  # the character behind the slash
