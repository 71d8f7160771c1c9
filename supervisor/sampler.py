"""What the workers use, read from their nodes: a series of samples of each process, for the watch on its budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from garrison.supervisor.cgroups.base import Cgroups, Usage
from garrison.supervisor.cgroups.errors import CgroupError

SAMPLE_SECONDS = 5.0
"""Time between two samples."""
FRESH_SECONDS = 1.0
"""A sample this young is shown as it is; an older one is taken again for whoever asks."""
MAX_DESCRIPTORS = 4096
"""Where the kernel does not count a process's open files (before Linux 6.2) they are counted up to this many."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the master itself knows of a worker's process; counters, so that nothing between two samples is missed.

    Attributes:
        pid: The worker's own process, whose open files are counted. 0: not known.
        beats: Signs of life so far.
        emitted: Events of the worker so far.
        rate_limited: Those of them that were over its budget's rate.
    """

    pid: int = 0
    beats: int = 0
    emitted: int = 0
    rate_limited: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """The counters of a process's node at a time, and what they came to since the sample before.

    Attributes:
        at: When it was taken, monotonic seconds.
        usage: The counters.
        cpu_percent: CPU use since the sample before, percent of one core.
        seconds: Time since the sample before; 0 where there is none, and nothing below can be judged.
        periods: CFS periods in which the worker wanted to run, since the sample before.
        throttled_periods: Those of them in which it was stopped by its quota.
        throttled_seconds: How long it stood stopped by its quota since the sample before, counted once however many
            CPUs it wanted; at most `seconds`.
        high_events: How often it was held back at ``memory.high`` since the sample before.
        max_events: How often it ran into its memory cap since the sample before.
        oom_kills: Processes killed for want of memory since the sample before, whoever's cap it was.
        pids_refused: Forks refused since the sample before.
        descriptors: Open files of the worker's own process; None where they could not be counted.
        beats: Signs of life since the sample before.
        events_per_second: Events since the sample before, the dropped included, a second.
        rate_limited: Events over the budget's rate since the sample before.
        facts: The counters behind the last three.
        stale: The node could not be read, and this is the sample before: not to be judged.
    """

    at: float
    usage: Usage
    cpu_percent: float = 0.0
    seconds: float = 0.0
    periods: int = 0
    throttled_periods: int = 0
    throttled_seconds: float = 0.0
    high_events: int = 0
    max_events: int = 0
    oom_kills: int = 0
    pids_refused: int = 0
    descriptors: int | None = None
    beats: int = 0
    events_per_second: float = 0.0
    rate_limited: int = 0
    facts: Facts = Facts()
    stale: bool = False

    @property
    def throttled_share(self) -> float:
        """Share of the periods in which the worker wanted to run and was stopped by its quota, 0 to 1."""
        return self.throttled_periods / self.periods if self.periods else 0.0


class Sampler:
    """Keeps the last sample of each worker's process.

    Args:
        cgroups: Where usage is read.
        paused: Adds what the kernel does not count where the master itself enforces the quota (unprivileged mode):
            worker, epoch and counters in, counters out.
    """

    def __init__(self, cgroups: Cgroups, paused: Callable[[str, int, Usage], Usage] | None = None) -> None:
        self._cgroups = cgroups
        self._paused = paused
        self._last: dict[tuple[str, int], Sample] = {}
        self._shown: dict[tuple[str, int], Sample] = {}
        self.error = ""
        """Why the last reading failed; empty where it did not."""

    def begin(self, worker: str, epoch: int, now: float) -> None:
        """Note that a process starts in a fresh node, so that its first sample already counts from its start."""
        self._last.setdefault((worker, epoch), Sample(now, Usage()))

    def sample(
        self, worker: str, epoch: int, now: float, max_age: float = FRESH_SECONDS, facts: Facts | None = None
    ) -> Sample:
        """Return a sample of a worker's process that is at most `max_age` seconds old: the next of its series.

        Args:
            worker: The worker's name.
            epoch: Number of its process.
            now: Monotonic seconds.
            max_age: The last sample is good enough if it is younger, seconds.
            facts: What the master knows of the process; None leaves it as it was.
        """
        last = self._last.get((worker, epoch))
        if last is not None and now - last.at < max_age:
            return last
        sample = self._take(worker, epoch, last, now, facts)
        if not sample.stale:
            self._last[worker, epoch] = sample
        return sample

    def peek(self, worker: str, epoch: int, now: float) -> Sample:
        """Return a sample to be shown, at most `FRESH_SECONDS` old, without a step of the series.

        Somebody who looks every second must not cut the intervals short that a budget is judged by.
        """
        key = worker, epoch
        last, shown = self._last.get(key), self._shown.get(key)
        newest = max((sample for sample in (last, shown) if sample is not None), key=lambda s: s.at, default=None)
        if newest is not None and newest.seconds and now - newest.at < FRESH_SECONDS:
            return newest
        # From the last one shown where that is long enough ago: what is shown is then of about the last second.
        sample = self._shown[key] = self._take(worker, epoch, newest, now, None)
        return sample

    def keep(self, living: set[tuple[str, int]]) -> None:
        """Forget every process that is not among the living."""
        for samples in (self._last, self._shown):
            for key in samples.keys() - living:
                del samples[key]

    def last(self, worker: str, epoch: int) -> Sample | None:
        """Return the newest sample of the series without taking one."""
        return self._last.get((worker, epoch))

    def _take(self, worker: str, epoch: int, last: Sample | None, now: float, facts: Facts | None) -> Sample:
        try:
            usage = self._cgroups.usage(worker)
        except CgroupError as error:
            # Out of descriptors, most likely. What the others use is still worth being shown.
            self.error = str(error)
            return replace(last, stale=True) if last is not None else Sample(now, Usage(), stale=True)
        self.error = ""
        if self._paused is not None:
            usage = self._paused(worker, epoch, usage)
        facts = facts or (last.facts if last is not None else Facts())
        return compare(last, Sample(now, usage, descriptors=open_files(facts.pid), facts=facts))


def compare(last: Sample | None, new: Sample) -> Sample:
    """Return a sample with what has changed since the one before. Pure.

    A counter that fell (the node was made anew between the two) counts from zero; time that stood still or went
    backwards makes a sample that cannot be judged (`Sample.seconds` is 0).
    """
    if last is None or new.at <= last.at:
        return new
    seconds = new.at - last.at

    def grown(name: str) -> float:
        before, after = getattr(last.usage, name), getattr(new.usage, name)
        return float(after - before if after >= before else after)

    def known(name: str) -> int:
        return max(0, int(getattr(new.facts, name) - getattr(last.facts, name)))

    return replace(
        new,
        seconds=seconds,
        cpu_percent=100.0 * grown("cpu_seconds") / seconds,
        periods=int(grown("periods")),
        throttled_periods=int(grown("throttled_periods")),
        # The kernel sums over CPUs.
        throttled_seconds=min(seconds, grown("throttled_seconds")),
        high_events=int(grown("memory_high_events")),
        max_events=int(grown("memory_max_events")),
        oom_kills=int(grown("oom_kills")),
        pids_refused=int(grown("pids_refused")),
        beats=known("beats"),
        events_per_second=known("emitted") / seconds,
        rate_limited=known("rate_limited"),
    )


def open_files(pid: int) -> int | None:
    """Return how many files a process has open; at most `MAX_DESCRIPTORS` are counted on old kernels.

    None where there is no such process, or it may not be looked into.
    """
    if pid <= 0:
        return None
    folder = f"/proc/{pid}/fd"
    try:
        # Since Linux 6.2 (proc: report open files as size in stat) one call says it; before, the size is 0.
        if count := os.stat(folder).st_size:
            return count
        with os.scandir(folder) as entries:
            return sum(1 for _ in islice(entries, MAX_DESCRIPTORS))
    except OSError:
        return None
