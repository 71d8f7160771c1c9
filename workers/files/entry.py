"""What is known of one file, and how two such views of it differ. Pure."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

FILE: Final = "f"
DIRECTORY: Final = "d"
LINK: Final = "l"
OTHER: Final = "o"
"""Devices, pipes, sockets: their metadata is kept, they are never opened."""

RACY: Final = 1
"""Hashed so soon after its last change that another one may have left the same times: the next look hashes again."""
UNHASHED: Final = 2
"""Too large to be hashed, or could not be read."""

Action = Literal["created", "modified", "attributes", "renamed", "deleted"]


class Entry(NamedTuple):
    """One entry of a directory.

    Attributes:
        kind: `FILE`, `DIRECTORY`, `LINK` or `OTHER`.
        size: Bytes; 0 for a directory, whose size says nothing.
        uid: Owner.
        gid: Group.
        mode: Permission bits, with set-user-id, set-group-id and sticky.
        mtime_ns: Nanoseconds since the epoch; 0 for a directory, where it only repeats what its entries tell.
        ctime_ns: Nanoseconds since the epoch; 0 for a directory.
        inode: Inode number.
        sha256: Digest, or None where the content was not read.
        link: Target of a symbolic link, as bytes, or None.
        flags: `RACY`, `UNHASHED`.
    """

    kind: str
    size: int
    uid: int
    gid: int
    mode: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    sha256: bytes | None = None
    link: bytes | None = None
    flags: int = 0

    def same_times(self, other: Entry) -> bool:
        """Tell whether the kernel shows no trace of a change between the two."""
        return (
            self.kind == other.kind
            and self.size == other.size
            and self.inode == other.inode
            and self.mtime_ns == other.mtime_ns
            and self.ctime_ns == other.ctime_ns
        )


def differences(old: Entry, new: Entry) -> tuple[str, ...]:
    """Return the names of what differs, the content first: type, size, target, sha256.

    ``content`` stands for a file without a digest whose time or inode has changed: it must be taken as changed.
    A changed ctime alone is nothing: it moves with each link to the file.
    """
    found: list[str] = []
    if old.kind != new.kind:
        found.append("type")
    if old.size != new.size:
        found.append("size")
    if old.link != new.link:
        found.append("target")
    if old.sha256 is not None and new.sha256 is not None:
        if old.sha256 != new.sha256:
            found.append("sha256")
    elif new.kind == old.kind == FILE and (old.mtime_ns != new.mtime_ns or old.inode != new.inode):
        found.append("content")
    if old.mode != new.mode:
        found.append("mode")
    if old.uid != new.uid:
        found.append("owner")
    if old.gid != new.gid:
        found.append("group")
    if old.mtime_ns != new.mtime_ns:
        found.append("mtime")
    if old.inode != new.inode:
        found.append("inode")
    return tuple(found)


_CONTENT: Final = frozenset(("type", "size", "sha256", "target", "content"))
_RIGHTS: Final = frozenset(("mode", "owner", "group"))


def action_for(changed: tuple[str, ...], *, times: bool) -> Action | None:
    """Return what differences amount to, or None where they are not worth an event.

    Args:
        changed: Result of `differences`.
        times: Report a file whose time or inode alone has changed too.
    """
    if not _CONTENT.isdisjoint(changed):
        return "modified"
    if not _RIGHTS.isdisjoint(changed) or (times and changed):
        return "attributes"
    return None
