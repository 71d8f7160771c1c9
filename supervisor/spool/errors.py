"""What can be wrong with the spool."""

from __future__ import annotations

from typing import Literal

Kind = Literal["full", "locked", "corrupt", "unusable"]


class SpoolError(Exception):
    """The spool cannot be used now; nothing was changed. The text says which file, why, and what to do.

    Attributes:
        kind: ``full``: the disk has no room for it. ``locked``: another process uses the file. ``corrupt``: what is in
            it cannot be read, now or ever; it should be set aside. ``unusable``: the system refused.
    """

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind
