"""When what has failed is tried again. Pure.

A link that is down is tried soon, since everything else depends on it. A refusal (no space, no permission, a
duplicate host) goes through the cluster's raft log like a write, and lasts until somebody acts, so it is tried ever
more slowly: a million hosts that lost their write right cost the cluster 8,300 to 16,700 entries a second.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from garrison.ipc.pacing import backoff

Duty: TypeAlias = Literal["lease", "registration", "status", "alivehost"]

LINK_KINDS = frozenset({"unavailable", "timeout", "no_leader", "closed"})
DUPLICATE = "duplicate"
"""The kind of a duplicate host, beside those of `EtcdError`."""

LINK_SECONDS = (1.0, 15.0)
REFUSED_SECONDS = (1.0, 120.0)
DUPLICATE_SECONDS = (30.0, 300.0)
"""First wait and longest wait."""


class Retries:
    """Keeps, for each duty, when it may be done again. Times are monotonic seconds.

    Args:
        host: The hostname, for the jitter.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._failures: dict[Duty, int] = {}
        self._linked: set[Duty] = set()
        self._at: dict[Duty, float] = {}

    def at(self, duty: Duty) -> float:
        """Return when a duty may be done; in the past where nothing is wrong with it."""
        return self._at.get(duty, float("-inf"))

    def failed(self, duty: Duty, kind: str, now: float) -> None:
        """Note a failure; `kind` is that of an `EtcdError`, or `DUPLICATE`."""
        linked = kind in LINK_KINDS
        base, cap = LINK_SECONDS if linked else DUPLICATE_SECONDS if kind == DUPLICATE else REFUSED_SECONDS
        failures = self._failures.get(duty, 0)
        self._failures[duty] = failures + 1
        self._at[duty] = now + backoff(failures, base=base, cap=cap, identity=(self._host, duty))
        (self._linked.add if linked else self._linked.discard)(duty)

    def wait(self, duty: Duty, until: float) -> None:
        """Note that a duty has to wait although nothing is wrong with it."""
        self._at[duty] = until

    def done(self, duty: Duty) -> None:
        """Note a success."""
        self._failures.pop(duty, None)
        self._at.pop(duty, None)
        self._linked.discard(duty)

    def relink(self) -> frozenset[Duty]:
        """Note that the link is another one or gone: what failed for its sake may be done at once.

        Returns:
            Which duties those are.
        """
        linked = frozenset(self._linked)
        for duty in linked:
            self.done(duty)
        return linked
