"""Which configuration a worker has, which it was offered, and which one it last took. No I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from garrison.ipc.messages import Config, Hold, LogLevel
from garrison.supervisor.settings import Budget

Status = Literal["pending", "applied", "rejected"]


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration as the desired state has it: its hash tells two of them apart."""

    revision: int = 0
    hash: str = ""
    settings: dict[str, Any] = {}
    rules: Any = None
    log_level: LogLevel = "info"


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told of its budget, to pace itself by; units are those of `Budget`."""

    beat_seconds: float
    events_per_second: float
    cpu_trip_percent: float
    cpu_trip_samples: int
    cpu_quota_percent: float
    sample_seconds: float
    dry_run: bool
    acks: bool


def pace_of(budget: Budget, *, dry_run: bool = False, acks: bool = False) -> Pace:
    """Return what of a budget the worker is told; `dry_run`: its own or the whole agent's; `acks`: as in `Config`."""
    told = {name: getattr(budget, name) for name in Pace.__struct_fields__ if name not in ("dry_run", "acks")}
    return Pace(**told, dry_run=dry_run, acks=acks)


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

    def first(self, pace: Pace, held: dict[str, Hold] | None = None) -> Config:
        """Return what a new process is told: the offer, or what was taken last where the offer was refused.

        Args:
            pace: Of its budget.
            held: What an earlier process knew of its modules' own breakers.
        """
        self._sent.clear()
        return msgspec.structs.replace(self.current(pace), held=held or {})

    def current(self, pace: Pace) -> Config:
        """Return the frame for what holds now: the offer, or what was taken last where the offer was refused."""
        refused = self.status == "rejected" and self.taken is not None
        return self.config(pace, self.taken if refused else self.offer)

    def config(self, pace: Pace, offer: Offer | None = None) -> Config:
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
            **msgspec.structs.asdict(pace),
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
