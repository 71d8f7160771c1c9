"""What the nursery tells a forked child to become."""

from __future__ import annotations

import msgspec


class Assignment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One worker: its name, its modules and its two pipes.

    Attributes:
        worker: The worker's name; the default of ``event.module``.
        modules: Pairs of a module's name and its spec: a built-in's name, ``package.module:Class``, or
            ``/absolute/file.py:Class``.
        host: Host name, for jitter and staggering only.
        state_dir: Directory of this worker's own; may be missing.
        beat_seconds: Seconds between two beats until a configuration says otherwise.
        queue_bytes: Most bytes of events that wait for the pipe; what does not fit is dropped and counted.
        rights: What this process may do, for the log.
        lacks: Capabilities that its modules work with and that it does not have.
        config_fd: Read end of the pipe from the master.
        events_fd: Write end of the pipe to the master.
    """

    worker: str
    modules: tuple[tuple[str, str], ...]
    host: str
    state_dir: str = ""
    beat_seconds: float = 5.0
    queue_bytes: int = 1024 * 1024
    rights: str = ""
    lacks: tuple[str, ...] = ()
    config_fd: int = 3
    events_fd: int = 4
