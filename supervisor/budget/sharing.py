"""How the workers' common CPU budget is shared out while they want more than there is. Pure.

The kernel holds the workers' common node to its quota, but it does not share that quota out fairly: a CPU draws on
it in slices of 5 ms, and where there are 10 ms in a period, the first CPU to ask twice has it all. Whoever waits on
another CPU gets nothing, whatever its weight, and is not moved, because throttled groups are not balanced. Seen on
Linux 6.18: among 15 busy workers in 10 % of a core a healthy one that needs 0.2 % did not run for ten seconds.

So while the common quota is used up, each worker gets a quota of its own, and those who want more than they get
have no more than the common quota together; that is then a backstop which nobody meets, and a worker waits for its
own use only. Who wants little keeps what it is entitled to by its weight; what is left goes to the others, by
weight (max-min fairness, as in a fair queue).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

USED_AT = 0.95
"""Share of the room that counts as all of it: at the kernel's quota usage stays a little below."""
SHARED = 0.9
"""Share of the room that is shared out: the kernel looks only each tick (4 ms), so each of them overruns a little."""
HUNGRY_AT = 0.8
"""Share of its cap from which a worker is taken to want more than it got."""
STOPPED_AT = 0.2
"""Share of its periods in which a worker was stopped by its quota that means the same."""
HEADROOM = 2.0
"""So many times what it used is left to a worker that wants little."""
CALM_AT = 0.6
"""Share of the room below which all is calm."""
CALM_LOOKS = 3
"""So many calm looks in a row end the sharing."""
STEADY = 0.1
"""A cap that would change by less than this share of itself stays: the kernel's files are not written each look."""
LEAST_PERCENT = 0.2
"""Least cap, percent of one core: the kernel's least quota of 1 ms, in a period of half a second."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that runs.

    Attributes:
        name: Its name.
        cpu_percent: CPU use since the last look, percent of one core.
        stopped_share: Share of its periods in which its own quota stopped it, 0 to 1.
        quota_percent: What it may use by itself, percent of one core.
        weight: Its share under contention, above 0.
    """

    name: str
    cpu_percent: float = 0.0
    stopped_share: float = 0.0
    quota_percent: float = 10.0
    weight: int = 100


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What holds from one look to the next.

    Attributes:
        active: The room is shared out.
        caps: What each worker may use then, percent of one core; never above its own quota.
        calm: So many looks in a row were calm.
    """

    active: bool = False
    caps: Mapping[str, float] = {}
    calm: int = 0


def share(state: State, members: Iterable[Member], room: float, *, stopped_by_quota: bool) -> State:
    """Return what holds after a look.

    Args:
        state: What held before.
        members: The workers that run and are not to be left alone.
        room: What they may use together, percent of one core.
        stopped_by_quota: The kernel has stopped all of them at their common quota.
    """
    members = tuple(members)
    used = sum(member.cpu_percent for member in members)
    short = stopped_by_quota or used >= USED_AT * room
    if not members or not (state.active or short):
        return State()
    calm = 0 if short or used > CALM_AT * room else state.calm + 1
    if calm >= CALM_LOOKS:
        return State()
    return State(active=True, caps=_caps(state, members, SHARED * room), calm=calm)


def _caps(state: State, members: tuple[Member, ...], room: float) -> dict[str, float]:
    whole = sum(member.weight for member in members)
    entitled = {member.name: min(member.quota_percent, room * member.weight / whole) for member in members}
    needs = {}
    for member in members:
        hungry = _hungry(member, state.caps.get(member.name, entitled[member.name]))
        needs[member.name] = member.quota_percent if hungry else min(member.quota_percent, _little(member))
    got = _fill(needs, {member.name: member.weight for member in members}, room)
    caps = {}
    for member in members:
        # Who wants little now may want its due at once, without waiting for the next look.
        cap = max(got[member.name], entitled[member.name] if needs[member.name] < member.quota_percent else 0.0)
        cap = min(member.quota_percent, max(cap, LEAST_PERCENT))
        before = state.caps.get(member.name)
        steady = before is not None and before <= member.quota_percent and abs(cap - before) <= STEADY * before
        caps[member.name] = before if steady and before is not None else cap
    return caps


def _hungry(member: Member, cap: float) -> bool:
    return member.cpu_percent >= HUNGRY_AT * cap or member.stopped_share >= STOPPED_AT


def _little(member: Member) -> float:
    return max(LEAST_PERCENT, HEADROOM * member.cpu_percent)


def _fill(needs: Mapping[str, float], weights: Mapping[str, int], room: float) -> dict[str, float]:
    """Share out by weight, to nobody more than it needs; what that leaves goes to the others."""
    got: dict[str, float] = {}
    # The one that is satisfied first comes first: whoever is left shares what is left.
    waiting = sorted(needs, key=lambda name: needs[name] / weights[name])
    weight = sum(weights.values())
    for name in waiting:
        got[name] = min(needs[name], max(0.0, room) * weights[name] / weight)
        room -= got[name]
        weight -= weights[name]
    return got
