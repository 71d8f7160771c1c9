"""Pacing: backoff with jitter, and the token bucket. Pure: time comes in as an argument.

Jitter comes from a hash of the host and a purpose instead of a random number, so that a fleet never moves
in step, yet one host's schedule can be computed again when somebody asks why it waited.
"""

from __future__ import annotations

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK = 2**64 - 1


def spread(*identity: str) -> float:
    """Return a number in [0, 1) that is fixed for an identity and even over many of them.

    64-bit FNV-1a (the Fowler-Noll-Vo hash) with the finalizer of MurmurHash3 behind it, which spreads what
    FNV leaves in the low bits. No secret depends on it, and hashlib would bring 0.5 MB of OpenSSL into every
    nursery.
    """
    value = _FNV_OFFSET
    for byte in "\0".join(identity).encode("utf-8", "surrogateescape"):
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return (value ^ (value >> 33)) / 2**64


def backoff(attempt: int, *, base: float, cap: float, identity: tuple[str, ...], jitter: float = 0.5) -> float:
    """Return the seconds to wait before a retry.

    ``min(cap, base * 2**attempt)``, shortened by up to the share `jitter` of it, by hash of the identity and
    the attempt. With the default the result lies in (half, whole].

    Args:
        attempt: Failures so far, from 0. Negative counts as 0.
        base: Seconds for attempt 0.
        cap: Most seconds, before the jitter.
        identity: Host name and purpose.
        jitter: Share of the wait that the jitter may take away, 0 to 1.
    """
    whole = min(cap, base * 2.0 ** min(max(attempt, 0), 64))
    return whole * (1.0 - jitter * spread(*identity, str(attempt)))


class TokenBucket:
    """A rate limit with a burst and a bounded debt.

    A batch is admitted while tokens are above zero, and may leave a debt of that one batch; so a batch
    larger than the burst still passes, and the average still holds.

    Args:
        rate: Tokens a second.
        burst: Most tokens that collect while nothing is taken.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at: float | None = None

    def admit(self, count: float, now: float) -> bool:
        """Take `count` tokens at the monotonic time `now` (seconds). False: over the limit, nothing taken.

        Time that goes backwards adds nothing.
        """
        self._refill(now)
        if self._tokens <= 0:
            return False
        self._tokens -= count
        return True

    def charge(self, count: float, now: float) -> None:
        """Take `count` tokens that something else has admitted, also where that leaves a debt."""
        self._refill(now)
        self._tokens -= count

    def limit(self, rate: float, burst: float) -> None:
        """Change the rate and the burst; tokens already there stay, up to the new burst."""
        self.rate, self.burst = rate, burst
        self._tokens = min(self._tokens, burst)

    def _refill(self, now: float) -> None:
        if self._at is None or now > self._at:
            if self._at is not None:
                self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
            self._at = now
