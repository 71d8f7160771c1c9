"""The watch on one process: which samples, one after the other, are a breach of its budget. Pure.

| Cause | What breaks the budget |
|---|---|
| cpu | above `cpu_trip_percent` (or what a running task may use) in `cpu_trip_samples` samples in a row |
| memory | working set above `memory_high` in `cpu_trip_samples` samples in a row; page cache never counts |
| pids | forks refused in three samples in a row, or refused once and the cap still reached in each of them |
| fds | at least 90 % of `nofile` open in `cpu_trip_samples` samples in a row |
| flood | in each of `cpu_trip_samples` samples in a row more events over the rate than the rate itself allows |
| hang | no sign of life for three beats of time in which it could run; or not ready within 60 s of such time |

There is no amnesty: the first sample of a process counts like any other. What the master could not see (it was
late, or the whole agent stood still) counts for no more than the time between two looks that it had planned.
"""

from __future__ import annotations

import msgspec

from garrison.supervisor.breaker import Cause, Policy
from garrison.supervisor.sampler import Sample
from garrison.supervisor.settings import Budget

MAX_STEP_SECONDS = 60.0
"""Most that one look adds to the time without a sign of life."""
MIN_HANG_SECONDS = 1.0
"""Shortest silence that is a hang, however often the worker is to beat: less happens to anybody on a busy host."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A breach, and the numbers behind it.

    Attributes:
        cause: What broke the budget.
        detail: The same in words.
        resource: The setting that is broken, or what was measured where no setting is.
        value: What was measured last.
        limit: What was allowed.
        window_seconds: For how long.
    """

    cause: Cause
    detail: str
    resource: str = ""
    value: float = 0.0
    limit: float = 0.0
    window_seconds: float = 0.0


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What the master knows beside the sample.

    Attributes:
        planned: Seconds between two looks, as the master meant it.
        ready: Whether the process has said that its modules run.
        frozen_seconds: For how long it stood frozen since the look before.
        waited_seconds: For how long it could run and got no CPU since the look before, its quota included.
        allowance_percent: CPU that a running task may use, percent of one core; 0 where none is allowed more.
        throttled: Whether its CPU is throttled now: what it uses is judged at the end of that.
    """

    planned: float
    ready: bool = True
    frozen_seconds: float = 0.0
    waited_seconds: float = 0.0
    allowance_percent: float = 0.0
    throttled: bool = False


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered between two looks at one process.

    Attributes:
        at: When the last sample was taken, monotonic seconds.
        cpu, memory, pids, fds, flood: Samples in a row that were over.
        refused: Whether a fork was ever refused.
        silent_seconds: Time in which it could run since its last sign of life.
        starting_seconds: The same until it was ready.
        periods: CFS periods since its throttle began, or looks where the kernel counts none.
        throttled_periods: Those of them in which it was at its cap.
    """

    at: float = 0.0
    cpu: int = 0
    memory: int = 0
    pids: int = 0
    fds: int = 0
    flood: int = 0
    refused: bool = False
    silent_seconds: float = 0.0
    starting_seconds: float = 0.0
    periods: int = 0
    throttled_periods: int = 0

    @property
    def throttled_percent(self) -> float:
        """Share of the periods since its throttle began in which the worker was at its cap, percent."""
        return 100.0 * self.throttled_periods / self.periods if self.periods else 0.0


def cpu_limit(budget: Budget, allowance_percent: float) -> float:
    """Return what a worker may use for long, percent of one core: more while a task may, never above its quota."""
    return max(budget.cpu_trip_percent, min(allowance_percent, budget.cpu_quota_percent))


def throttle_cap(budget: Budget) -> float:
    """Return the quota of a throttled worker, percent of one core."""
    return min(budget.cpu_quota_percent, max(1.0, budget.cpu_trip_percent / 2))


def judge(watch: Watch, sample: Sample, look: Look, budget: Budget, policy: Policy) -> tuple[Watch, Verdict | None]:
    """Return what is remembered after a sample, and the breach that it completes, if any.

    A sample that is stale, not newer than the last one, or the first of its kind tells nothing and changes nothing.
    A breach clears what led to it, so that where nothing follows from it (`dry_run`) it is told once per window.
    """
    if sample.stale or sample.seconds <= 0 or sample.at <= watch.at:
        return watch, None
    limit = cpu_limit(budget, look.allowance_percent)
    refused = watch.refused or sample.pids_refused > 0
    at_cap = refused and sample.usage.pids >= budget.pids_max
    crowded = sample.descriptors is not None and sample.descriptors * 100 >= budget.nofile * policy.fds_percent
    silent, starting = _silence(watch, sample, look, budget)
    # Where the kernel counts no periods each look stands for one.
    polled = sample.periods == 0 and sample.cpu_percent > 0
    watch = msgspec.structs.replace(
        watch,
        at=sample.at,
        cpu=_row(watch.cpu, sample.cpu_percent > limit and not look.throttled),
        memory=_row(watch.memory, sample.usage.memory_working_bytes > budget.memory_high),
        pids=_row(watch.pids, sample.pids_refused > 0 or at_cap),
        fds=_row(watch.fds, crowded),
        flood=_row(watch.flood, sample.rate_limited > budget.events_per_second * sample.seconds),
        refused=refused,
        silent_seconds=silent,
        starting_seconds=starting,
        periods=watch.periods + sample.periods + polled,
        throttled_periods=watch.throttled_periods
        + sample.throttled_periods
        + (polled and sample.cpu_percent >= 0.9 * throttle_cap(budget)),
    )
    verdict = _verdict(watch, sample, look, budget, policy)
    return (watch if verdict is None else _cleared(watch, verdict.cause)), verdict


def throttle_begins(watch: Watch) -> Watch:
    """Return the watch of a worker whose throttle begins: its periods are counted from here."""
    return msgspec.structs.replace(watch, cpu=0, periods=0, throttled_periods=0)


def strained(watch: Watch) -> bool:
    """Return whether a worker is near a breach of memory and should be told to do less."""
    return watch.memory >= 2


def _row(count: int, over: bool) -> int:
    return count + 1 if over else 0


def _silence(watch: Watch, sample: Sample, look: Look, budget: Budget) -> tuple[float, float]:
    """Return the time without a sign of life, and that without being ready, seconds of time in which it could run.

    A step adds at most one beat, so that it takes several looks at which nothing had come: whatever held the master
    up, it has read what was there between two of them.
    """
    step = min(sample.seconds, look.planned, MAX_STEP_SECONDS)
    # What a task waits for the CPU includes what its quota made it wait for.
    step = max(0.0, step - max(sample.throttled_seconds, look.waited_seconds) - look.frozen_seconds)
    starting = 0.0 if look.ready else watch.starting_seconds + step
    if sample.beats > 0 or not look.ready:
        return 0.0, starting
    return watch.silent_seconds + min(step, budget.beat_seconds), starting


def _verdict(watch: Watch, sample: Sample, look: Look, budget: Budget, policy: Policy) -> Verdict | None:
    """Return the gravest breach that is complete."""
    lasting = budget.cpu_trip_samples
    window = lasting * budget.sample_seconds
    if watch.pids >= policy.pids_samples:
        return Verdict(
            cause="pids",
            detail=f"the kernel refuses it more than its pids_max of {budget.pids_max} processes and threads",
            resource="pids_max",
            value=sample.usage.pids,
            limit=budget.pids_max,
            window_seconds=policy.pids_samples * budget.sample_seconds,
        )
    if watch.memory >= lasting:
        used = sample.usage.memory_working_bytes
        return Verdict(
            cause="memory",
            detail=f"{used} bytes in use, above its memory_high of {budget.memory_high} for {window:g} s",
            resource="memory_high",
            value=used,
            limit=budget.memory_high,
            window_seconds=window,
        )
    if watch.cpu >= lasting:
        limit = cpu_limit(budget, look.allowance_percent)
        return Verdict(
            cause="cpu",
            detail=f"{sample.cpu_percent:.1f} % of a core in the last of {lasting} samples above its "
            f"cpu_trip_percent of {limit:g} % ({window:g} s)",
            resource="cpu_trip_percent",
            value=round(sample.cpu_percent, 2),
            limit=limit,
            window_seconds=window,
        )
    if watch.fds >= lasting:
        return Verdict(
            cause="fds",
            detail=f"{sample.descriptors} open files, near its nofile of {budget.nofile}, for {window:g} s",
            resource="nofile",
            value=sample.descriptors or 0,
            limit=budget.nofile,
            window_seconds=window,
        )
    if watch.flood >= lasting:
        return Verdict(
            cause="flood",
            detail=f"{sample.events_per_second:.0f} events a second, more than twice its events_per_second of "
            f"{budget.events_per_second:g} for {window:g} s",
            resource="events_per_second",
            value=round(sample.events_per_second, 1),
            limit=budget.events_per_second,
            window_seconds=window,
        )
    return _hang(watch, budget, policy)


def _hang(watch: Watch, budget: Budget, policy: Policy) -> Verdict | None:
    allowed = max(MIN_HANG_SECONDS, policy.hang_beats * budget.beat_seconds)
    # The steps are sums of what clocks said; a hair less than the whole is the whole.
    if watch.silent_seconds >= allowed - 1e-6:
        return Verdict(
            cause="hang",
            detail=f"no sign of life for {watch.silent_seconds:.1f} s in which it could run "
            f"(beat_seconds is {budget.beat_seconds:g})",
            resource="beat_seconds",
            value=round(watch.silent_seconds, 1),
            limit=allowed,
            window_seconds=allowed,
        )
    if watch.starting_seconds >= policy.start_seconds:
        return Verdict(
            cause="hang",
            detail=f"not ready after {watch.starting_seconds:.0f} s in which it could run",
            resource="ready",
            value=round(watch.starting_seconds, 1),
            limit=policy.start_seconds,
            window_seconds=policy.start_seconds,
        )
    return None


def _cleared(watch: Watch, cause: Cause) -> Watch:
    if cause == "hang":
        return msgspec.structs.replace(watch, silent_seconds=0.0, starting_seconds=0.0)
    return msgspec.structs.replace(watch, **{cause: 0})
