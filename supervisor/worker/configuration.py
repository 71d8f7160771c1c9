"""Which configuration a worker has, which it was offered, and which one it last took. No I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from garrison.ipc.messages import Config, LogLevel

Status = Literal["pending", "applied", "rejected"]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration as the desired state has it: its hash tells two of them apart."""

    revision: int = 0
    hash: str = ""
    settings: dict[str, Any] = {}
    rules: Any = None
    log_level: LogLevel = "info"


class ConfigurationState:
    """Follows the offers to one worker across its processes.

    An offer that the worker refuses is not sent to its next process either: that one gets the last offer
    that was taken, so a bad change cannot come back with a restart.

    Args:
        taken: The last offer that was taken, kept from before this master's start.
    """

    def __init__(self, taken: Offer | None = None) -> None:
        self.taken = taken
        self.offer = taken if taken is not None else Offer()
        self.status: Status = "pending"
        self.error: str | None = None
        self._number = 0
        self._sent: dict[int, Offer] = {}

    def offers(self, offer: Offer) -> bool:
        """Take note of the desired configuration. True: it is another one, and a running worker must get it."""
        if offer.hash == self.offer.hash and (self.status != "pending" or self._sent):
            self.offer = offer
            return False
        self.offer, self.status, self.error = offer, "pending", None
        return True

    def first(self, beat_seconds: float, events_per_second: float) -> Config:
        """Return what a new process is told: the offer, or what was taken last where the offer was refused."""
        self._sent.clear()
        return self.current(beat_seconds, events_per_second)

    def current(self, beat_seconds: float, events_per_second: float) -> Config:
        """Return the frame for what holds now: the offer, or what was taken last where the offer was refused."""
        refused = self.status == "rejected" and self.taken is not None
        return self.config(beat_seconds, events_per_second, self.taken if refused else self.offer)

    def config(self, beat_seconds: float, events_per_second: float, offer: Offer | None = None) -> Config:
        """Return the frame for an offer, under a number of its own, so that each answer finds its offer."""
        chosen = offer if offer is not None else self.offer
        self._number += 1
        self._sent[self._number] = chosen
        while len(self._sent) > 16:  # a worker that never answers
            del self._sent[next(iter(self._sent))]
        return Config(
            revision=self._number,
            hash=chosen.hash,
            settings=chosen.settings,
            rules=chosen.rules,
            log_level=chosen.log_level,
            beat_seconds=beat_seconds,
            events_per_second=events_per_second,
        )

    def answered(self, number: int, ok: bool, error: str | None) -> Offer | None:
        """Take the worker's answer; returns the offer that was newly taken, if it is the one that is wanted.

        Answers to offers that were replaced meanwhile, or were never made, change nothing.
        """
        offer = self._sent.pop(number, None)
        if offer is None or offer.hash != self.offer.hash:
            return None
        if ok:
            self.status, self.error, self.taken = "applied", None, offer
            return offer
        self.status, self.error = "rejected", error or "the worker gave no reason"
        return None
