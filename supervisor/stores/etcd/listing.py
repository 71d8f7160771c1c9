"""Reading everything that concerns a host, as of one revision, a bounded amount at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from garrison.supervisor.stores.etcd.aim import Aim, whole
from garrison.supervisor.stores.etcd.connection import Connection
from garrison.supervisor.stores.etcd.errors import EtcdError
from garrison.supervisor.stores.etcd.mirror import MAX_KEYS
from garrison.supervisor.stores.etcd.results import Header, KeyValue, Page, Range

PAGE_KEYS = 500
"""Keys in one answer; fewer where they are large."""

MAX_READ_BYTES = 64 * 1024 * 1024
"""Most bytes of one listing: a host's keys hold a thousandth of it. What is left is reported, not read."""


class Listing(NamedTuple):
    """What a listing has found.

    Attributes:
        header: Of its first answer.
        items: The keys, the most important first.
        unread: First keys of ranges that were not read to their end.
    """

    header: Header
    items: tuple[KeyValue, ...]
    unread: tuple[str, ...]


def read_kills(connection: Connection, aim: Aim) -> tuple[Header, tuple[KeyValue, ...]]:
    """Read the killswitch keys, linearizable: whatever a quorum has agreed on is in the answer.

    Raises:
        EtcdError: They could not be read.
    """
    header, pages = _read_many(connection, [Range(key) for key in aim.kill_keys])
    return header, tuple(item for page in pages for item in page.items)


def read_all(connection: Connection, aim: Aim) -> Listing:
    """Read everything that concerns the host.

    The member's own database is asked: it is at least as new as the killswitch, which was read through it before.

    Raises:
        EtcdError: It could not be read; ``compacted``: it took so long that the revision is gone, begin again.
    """
    wanted = [Range(key, end, limit=PAGE_KEYS, serializable=True) for key, end in aim.ranges]
    try:
        header, pages = _read_many(connection, wanted)
    except EtcdError as error:
        if error.kind != "too_large":
            raise
        header, pages = connection.range(Range(aim.kill_keys[0], count_only=True)).header, []
    reader = _Reader(connection, header.revision)
    for index, (key, end) in enumerate(aim.ranges):
        reader.read(key, end, pages[index] if pages else None)
    return Listing(header, tuple(reader.items), tuple(reader.unread))


def tally(connection: Connection, aim: Aim) -> tuple[tuple[int, int], ...]:
    """Return for each watch how many keys there are, and the newest revision: what `Mirror.tally` gives.

    Small answers from the member's own database; the cluster is not asked.

    Raises:
        EtcdError: It could not be read.
    """
    _, pages = _read_many(connection, whole(aim))
    return tuple((page.count, page.items[0].mod_revision if page.items else 0) for page in pages)


class _Reader:
    """Reads ranges page by page; pages become smaller where values are large."""

    def __init__(self, connection: Connection, revision: int) -> None:
        self._connection = connection
        self._revision = revision
        self._size = PAGE_KEYS
        self._bytes = 0
        self.items: list[KeyValue] = []
        self.unread: list[str] = []

    def read(self, key: str, end: str, first: Page | None) -> None:
        start, page = key, first
        while True:
            if page is None:
                if self._bytes > MAX_READ_BYTES or len(self.items) > MAX_KEYS:
                    self.unread.append(key)
                    return
                page = self._page(start, end)
            self.items += page.items
            self._bytes += sum(len(item.value) for item in page.items)
            if not page.more or not page.items:
                return
            start, page = page.items[-1].key + "\0", None

    def _page(self, key: str, end: str) -> Page:
        while True:
            wanted = Range(key, end, limit=self._size, revision=self._revision, serializable=True)
            try:
                return self._connection.range(wanted)
            except EtcdError as error:
                if error.kind != "too_large" or self._size == 1:
                    raise
            self._size = max(1, self._size // 8)


def _read_many(connection: Connection, wanted: Sequence[Range]) -> tuple[Header, list[Page]]:
    """Read any number of ranges, all as of the revision of the first one.

    Only the first one may cost the cluster a round: the member that has answered it has that revision. Why no
    transaction does this in one call: `Connection.txn`.
    """
    first = connection.range(wanted[0])
    revision = first.header.revision
    rest = (connection.range(one._replace(revision=revision, serializable=True)) for one in wanted[1:])
    return first.header, [first, *rest]
