"""Reads events as the file sink writes them, and takes from each what is needed. Garbage is counted, not fatal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import msgspec

from garrison.fleet.reconcile.evidence import Accounting, Evidence

CHUNK_BYTES = 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
"""Longest line that is looked at: sixteen times what the agent writes."""
AGENT = "agent"
HEARTBEATS = {"heartbeat", "worker-heartbeat"}
MAX_BAD = 10
"""So many places of garbage are named."""
MAX_NAME = 253
MAX_NUMBER = 2**53
_PRIORITIES = frozenset(("alert", "state", "event", "metric"))


class _Event(msgspec.Struct):
    sequence: Any = None
    action: Any = None


class _Host(msgspec.Struct):
    name: str


class _Agent(msgspec.Struct):
    worker: str
    epoch: int
    priority: str
    type: str = ""


class _Document(msgspec.Struct):
    host: _Host
    agent: _Agent
    event: _Event = msgspec.field(default_factory=_Event)
    garrison: msgspec.Raw = msgspec.Raw(b"null")


class _Heartbeat(msgspec.Struct):
    events: Accounting
    worker: str = AGENT
    epoch: int = 0


class _Stamp(NamedTuple):
    """The headers of a message."""

    host: str
    worker: str
    epoch: int
    priority: str
    sequence: int
    lines: int


_document = msgspec.json.Decoder(_Document)
_heartbeat = msgspec.json.Decoder(_Heartbeat)


class Reader:
    """Takes events from wherever they come.

    Args:
        evidence: Where they go.
        wanted: Tells whether a host is to be looked at; None: all are.

    Attributes:
        lines: Lines or messages read.
        bad: Those that are no events of an agent.
        unnumbered: Events without a sequence number of their own, as external programs may write them: nothing can be
            said about these.
        others: Events of hosts that are not wanted.
        where: Where the first bad ones are, and what is wrong with them.
    """

    def __init__(self, evidence: Evidence, wanted: Callable[[str], bool] | None = None) -> None:
        self.lines = 0
        self.bad = 0
        self.unnumbered = 0
        self.others = 0
        self.where: list[str] = []
        self._evidence = evidence
        self._wanted = wanted or (lambda _host: True)

    def take(self, line: bytes, place: Callable[[], str]) -> None:
        """Take one event.

        Args:
            line: Its JSON document.
            place: Returns where it stands, for whoever looks for a bad one.

        Raises:
            TooMuchError: See `Evidence`.
        """
        self.lines += 1
        try:
            document = _document.decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            self.reject(place, str(error))
            return
        agent, host, sequence = document.agent, document.host.name, document.event.sequence
        if agent.priority not in _PRIORITIES or agent.epoch < 0 or not 0 < len(host) <= MAX_NAME:
            self.reject(place, "it does not bear an agent's stamp")
            return
        if not self._wanted(host):
            self.others += 1
            return
        if type(sequence) is not int or not 0 < sequence < MAX_NUMBER:
            self.unnumbered += 1
            return
        stream = sys.intern(agent.worker), agent.epoch, sys.intern(agent.priority)
        self._evidence.arrived(host, stream, sequence, sequence)
        self._listen(document, sequence, place)

    def take_message(self, headers: Sequence[tuple[str, bytes | None]], value: bytes, place: Callable[[], str]) -> None:
        """Take a message of Kafka: one event, or several as lines.

        Its headers are the agent's own word; the body is believed where they say nothing of the numbers.

        Raises:
            TooMuchError: See `Evidence`.
        """
        stamp = _stamp(headers)
        if stamp is None:
            for line in value.split(b"\n"):
                if line:
                    self.take(line, place)
            return
        self.lines += stamp.lines
        if not self._wanted(stamp.host):
            self.others += stamp.lines
            return
        last = stamp.sequence + stamp.lines - 1
        self._evidence.arrived(stamp.host, (stamp.worker, stamp.epoch, stamp.priority), stamp.sequence, last)
        if stamp.worker == AGENT:
            for number, line in enumerate(value.split(b"\n")[: stamp.lines], stamp.sequence):
                try:
                    self._listen(_document.decode(line), number, place)
                except (msgspec.MsgspecError, RecursionError, ValueError) as error:
                    self.reject(place, str(error))

    def reject(self, place: Callable[[], str], why: str) -> None:
        """Count something that is no event."""
        self.bad += 1
        if len(self.where) < MAX_BAD:
            self.where.append(f"{place()}: {why}"[:300])

    def _listen(self, document: _Document, sequence: int, place: Callable[[], str]) -> None:
        """Note what a heartbeat says. Only the agent itself has a say about its workers."""
        if document.agent.worker != AGENT or document.event.action not in HEARTBEATS:
            return
        try:
            said = _heartbeat.decode(document.garrison)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            self.reject(place, f"a heartbeat that cannot be understood: {error}")
            return
        self._evidence.told(document.host.name, said.worker, (document.agent.epoch, sequence), said.epoch, said.events)


def _stamp(headers: Sequence[tuple[str, bytes | None]]) -> _Stamp | None:
    """Return what the headers of a message say; None where they do not say all of it."""
    said = {name: value for name, value in headers if value is not None}
    try:
        stamp = _Stamp(
            host=said["host"].decode(),
            worker=sys.intern(said["worker"].decode()),
            epoch=int(said["epoch"]),
            priority=sys.intern(said["priority"].decode()),
            sequence=int(said["sequence"]),
            lines=int(said["count"]),
        )
    except (KeyError, ValueError):
        return None
    numbers = 0 < stamp.sequence < MAX_NUMBER and 0 < stamp.lines <= MAX_LINE_BYTES and stamp.epoch >= 0
    return stamp if numbers and stamp.priority in _PRIORITIES and 0 < len(stamp.host) <= MAX_NAME else None


def paths_of(name: str) -> list[str]:
    """Return the files behind a name: itself, or the two alternating ones of a file sink with this path.

    Raises:
        FileNotFoundError: There is neither.
    """
    if name == "-" or os.path.exists(name):
        return [name]
    stem, extension = os.path.splitext(name)
    found = [path for path in (f"{stem}.0{extension}", f"{stem}.1{extension}") if os.path.exists(path)]
    if not found:
        raise FileNotFoundError(f"there is neither {name} nor {stem}.0{extension}")
    return found


def read_file(reader: Reader, path: str) -> None:
    """Take every line of a file; ``-`` is standard input. Its size does not matter.

    Raises:
        OSError: It cannot be read.
        TooMuchError: See `Evidence`.
    """
    if path == "-":
        _read(reader, sys.stdin.buffer, "standard input")
        return
    with open(path, "rb", buffering=0) as file:
        _read(reader, file, path)


def _read(reader: Reader, file: BinaryIO | Any, name: str) -> None:
    for number, (line, whole) in enumerate(_lines(file), 1):

        def place(at: int = number) -> str:
            return f"{name}, line {at}"

        if not whole:
            reader.lines += 1
            reader.reject(place, f"a line of more than {MAX_LINE_BYTES} bytes, or one that was cut at the end")
        elif line:
            reader.take(line, place)


def _lines(file: BinaryIO | Any) -> Iterator[tuple[bytes, bool]]:
    """Return the lines of a file without their ends; what is too long, or has no end, as not whole."""
    rest = b""
    skipping = False
    while chunk := file.read(CHUNK_BYTES):
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if skipping:
                skipping = False
                yield b"", False
            else:
                yield line, len(line) <= MAX_LINE_BYTES
        if len(rest) > MAX_LINE_BYTES:
            rest, skipping = b"", True
    if skipping or rest:
        yield b"", False
