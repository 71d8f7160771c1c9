"""The settings of the files module; the table in docs/files-worker.md is made from these."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MIB = 1024 * 1024

Pattern = Annotated[str, Meta(pattern="^/", max_length=512)]
Patterns = Annotated[tuple[Pattern, ...], Meta(max_length=256)]
Glob = Annotated[str, Meta(min_length=1, max_length=256)]
Globs = Annotated[tuple[Glob, ...], Meta(max_length=256)]


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Settings of the files module; only those that differ from the default need be given."""

    presets: Annotated[
        tuple[Literal["persistence", "web"], ...],
        Meta(
            max_length=2,
            description="Lists of places that come with the worker: `persistence` (alerts) and `web` (events).",
        ),
    ] = ("persistence", "web")
    paths: Annotated[
        Patterns,
        Meta(
            description="Further places whose changes are events. A directory covers all below it; `*`, `?` and `[…]` "
            "match within one name."
        ),
    ] = ()
    alert_paths: Annotated[Patterns, Meta(description="Further places whose changes are alerts.")] = ()
    include: Annotated[
        Globs,
        Meta(
            description="Where given, only files that match one of these are tracked below `paths` and web roots. A "
            "glob without `/` is for the name, one with `/` for the whole path."
        ),
    ] = ()
    exclude: Annotated[
        Globs,
        Meta(description="What is not tracked anywhere, by the same kind of glob; a directory with all below it."),
    ] = ("*.swp", "*.swx")
    hash_max_bytes: Annotated[
        int,
        Meta(ge=0, le=1024 * MIB, description="Files above this size, bytes, are tracked by their metadata only."),
    ] = 10 * MIB
    read_bytes_per_second: Annotated[
        int, Meta(ge=64 * 1024, le=1024 * MIB, description="Most bytes a second that are read for hashing.")
    ] = MIB
    cpu_percent: Annotated[
        float,
        Meta(
            ge=0.5,
            le=100,
            description="CPU that this module may use on average, percent of one core; never more than 80 % of its "
            "share of the budget's `cpu_trip_percent`, whatever stands here.",
        ),
    ] = 4.0
    settle_seconds: Annotated[
        float, Meta(ge=0.02, le=60, description="A change is judged when so long nothing has happened to the file.")
    ] = 1.0
    settle_max_seconds: Annotated[
        float, Meta(ge=0.02, le=600, description="A file that keeps changing is judged after so long all the same.")
    ] = 10.0
    events_per_second: Annotated[
        float,
        Meta(ge=1, le=100_000, description="Most events a second; changes beyond wait, they are not lost."),
    ] = 200.0
    alerts_per_minute: Annotated[
        float,
        Meta(ge=1, le=6000, description="Most alerts a minute, with a burst of as many; further ones leave as events."),
    ] = 60.0
    rescan_seconds: Annotated[
        float, Meta(ge=60, le=30 * 86400, description="Seconds between two looks at everything, beside inotify.")
    ] = 21600.0
    poll_seconds: Annotated[
        float,
        Meta(ge=0.2, le=86400, description="Seconds between two looks at directories for which there is no watch."),
    ] = 300.0
    entries_max: Annotated[
        int, Meta(ge=100, le=1_000_000, description="Most files and directories that are tracked.")
    ] = 200_000
    watches_max: Annotated[
        int, Meta(ge=0, le=500_000, description="Most directories that are watched; the rest is polled.")
    ] = 32_768
    depth_max: Annotated[int, Meta(ge=1, le=128, description="Most levels below a configured path.")] = 32
    path_bytes_max: Annotated[int, Meta(ge=64, le=4000, description="Longest path that is tracked, bytes.")] = 1024
    cross_filesystems: Annotated[bool, Meta(description="Go on below mount points inside a configured path.")] = False
    network_filesystems: Annotated[
        bool, Meta(description="Also look at network and FUSE file systems. One that hangs would hang this module.")
    ] = False
    report_times: Annotated[
        bool, Meta(description="Also report a file whose times or inode have changed and nothing else.")
    ] = False
    stats_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="Seconds between two metric events with the counters; 0: none.")
    ] = 300.0
