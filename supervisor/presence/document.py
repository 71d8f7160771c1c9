"""The documents that an agent writes into etcd, and their JSON. Pure.

Fields are only ever added, with a default, and unknown ones are ignored, so that agents and readers of different
versions understand each other. Documents hold *slow* facts: what changes because somebody decided something or
something broke. What moves by itself (CPU, memory, counters, ages) is never in here, since every change is a write
to a cluster that a million hosts share.
"""

from __future__ import annotations

import time
from typing import TypeVar

import msgspec

from garrison.supervisor.control.status import ConfigStatus, KillswitchStatus

Document = TypeVar("Document")

MAX_TEXT = 300
"""Longest text of a problem or an error in a document, characters."""
MAX_PROBLEMS = 20
MAX_ADDRESSES = 16
MAX_DOCUMENT_BYTES = 256 * 1024
"""Largest value that is decoded; what an agent writes is far below it."""


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs on a host: the value of ``/hids/agent/master/{hostname}``.

    Attributes:
        version: Of the agent.
        machine_id: Of the machine (``/etc/machine-id``); empty where it has none.
        boot_id: Of the kernel's start.
        instance: Of this process: random, new at every start. Tells a late answer to our own write from a double.
        pid: Of the master.
        ip_addresses: Of the host, the one that etcd is reached from first; no loopback, no link-local ones.
        kernel: Its release.
        cgroup_mode: How caps are enforced.
        groups: The groups in force.
        started: When the agent started, ISO 8601, UTC.
    """

    version: str = ""
    machine_id: str = ""
    boot_id: str = ""
    instance: str = ""
    pid: int = 0
    ip_addresses: tuple[str, ...] = ()
    kernel: str = ""
    cgroup_mode: str = ""
    groups: tuple[str, ...] = ()
    started: str = ""


class BreakerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The slow facts of a circuit breaker; ``closed`` is the good state."""

    state: str = "closed"
    trips: int = 0
    cause: str | None = None


class WorkerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: what is wanted of it beside what it does.

    Attributes:
        desired: ``start``, ``stop`` or ``freeze``.
        desired_by: Who decides that: a key, ``local`` or ``default``.
        state: What it is doing.
        config: The configuration: revision, hash, and whether it was applied.
        config_by: The keys behind it: settings, budget, rules, log level; none where the file alone decides.
        last_error: Why it last failed.
    """

    name: str
    desired: str = "start"
    desired_by: str = ""
    state: str = "stopped"
    breaker: BreakerFacts = BreakerFacts()
    config: ConfigStatus = msgspec.field(default_factory=ConfigStatus)
    config_by: tuple[str, ...] = ()
    last_error: str | None = None


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a host is doing: the value of ``/hids/agent/status/{hostname}``.

    Attributes:
        written: When it was written, ISO 8601, UTC; no part of what is compared.
        master_by: The key that decides the master's own settings; ``default`` where none does.
        groups_by: Who decides the groups.
        problems: What is wrong with the agent now; at most `MAX_PROBLEMS`.
    """

    host: str
    written: str = ""
    version: str = ""
    killswitch: KillswitchStatus = msgspec.field(default_factory=KillswitchStatus)
    groups: tuple[str, ...] = ()
    groups_by: str = ""
    master_by: str = ""
    problems: tuple[str, ...] = ()
    workers: tuple[WorkerFacts, ...] = ()


_encoder = msgspec.json.Encoder()
_registration = msgspec.json.Decoder(Registration)
_status = msgspec.json.Decoder(HostStatus)


def encode(document: Registration | HostStatus) -> bytes:
    """Return a document's bytes, on one line."""
    return _encoder.encode(document)


def decode_registration(value: bytes) -> Registration | None:
    """Return the registration that a value is, or None where it is none (another program's, or garbage)."""
    return _decode(_registration, value)


def decode_status(value: bytes) -> HostStatus | None:
    """Return the status that a value is, or None where it is none."""
    return _decode(_status, value)


def alive_value(seconds: float) -> bytes:
    """Return the value of an alivehost key: a time since the epoch as local time, as that older layout has it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)).encode()


def clipped(text: str) -> str:
    """Return a text that is short enough for a document."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def clipped_problems(texts: list[str]) -> tuple[str, ...]:
    """Return problems that are few and short enough for a document; the last one says how many were left out."""
    if len(texts) > MAX_PROBLEMS:
        texts = [*texts[: MAX_PROBLEMS - 1], f"{len(texts) - MAX_PROBLEMS + 1} more: garrison status on the host"]
    return tuple(clipped(text) for text in texts)


def _decode(decoder: msgspec.json.Decoder[Document], value: bytes) -> Document | None:
    if len(value) > MAX_DOCUMENT_BYTES:
        return None
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
