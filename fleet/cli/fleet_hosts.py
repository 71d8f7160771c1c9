"""``garrison fleet hosts``: the fleet as its registrations, states and keys show it, for people and for programs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
from rich.text import Text

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError, complain
from garrison.fleet.cli.fleet_reach import Given, told
from garrison.fleet.cli.terminal import Terminal
from garrison.fleet.cli.text import count, plural, safe_json, sanitise

if TYPE_CHECKING:
    from garrison.fleet.etcd.hosts import Host, Mark
    from garrison.fleet.etcd.reach import Reach
    from garrison.fleet.etcd.scan import Scan

_STYLES: Final = {
    "online": "green",
    "gone": "bold red",
    "killed": "bold white on red",
    "duplicate": "bold red",
    "unconfirmed": "yellow",
    "differs": "yellow",
    "problem": "yellow",
}
_WIDTHS: Final = (28, 11, 20, 10, 16)
_HEADINGS: Final = ("HOST", "STATE", "GROUPS", "VERSION", "ADDRESS", "WORKERS")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command, as they were given."""

    states: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    expected: str = ""
    trouble: bool = False
    summary: bool = False
    as_json: bool = False
    page: int = 1000


def show(target: Target, given: Given, options: Options) -> int:
    """Print the fleet once; return the exit code."""
    with told():
        reach = given.reach(target)
        return _Listing(reach, options).run()


def watch(target: Target, given: Given, options: Options, seconds: float) -> int:
    """Print the fleet again and again until Ctrl-C; a cluster that does not answer is waited for."""
    with told():
        reach = given.reach(target)
        listing = _Listing(reach, options)
        while True:
            try:
                with told():
                    listing.run(clear=True)
            except CliError as error:
                if error.code != exits.UNAVAILABLE:
                    raise
                complain(error.message, f"trying again in {seconds:g} s")
            sys.stdout.flush()
            time.sleep(seconds)


class _Listing:
    def __init__(self, reach: Reach, options: Options) -> None:
        self._reach = reach
        self._options = options
        self._total = 0
        self._expected = read_expected(options.expected) if options.expected else frozenset()

    def run(self, *, clear: bool = False) -> int:
        from garrison.fleet.etcd.hosts import ATTENTION
        from garrison.fleet.etcd.reach import connect
        from garrison.fleet.etcd.scan import Scan
        from garrison.supervisor.stores.etcd.connection import Connection

        self._total = 0
        connection = connect(self._reach, Connection)
        try:
            scan = Scan(connection, self._reach.prefix, self._expected, self._options.page)
            counted: Counter[Mark] = Counter()
            terminal = Terminal()
            hosts = self._chosen(scan.hosts(), counted)
            # The first page before the screen is cleared: what cannot be read leaves the old picture.
            first = next(hosts, None)
            if clear and terminal.is_terminal:
                terminal.clear()
            if not self._options.as_json and not self._options.summary and first is not None:
                terminal.print(Text(_columns(_HEADINGS), style="bold"))
            while first is not None:
                if not self._options.summary:
                    self._print(first, terminal)
                first = next(hosts, None)
            self._finish(scan, counted, terminal)
        finally:
            connection.close()
        if self._options.as_json:
            return exits.OK
        return exits.UNHEALTHY if any(counted[mark] for mark in ATTENTION) else exits.OK

    def _chosen(self, hosts: Iterator[Host], counted: Counter[Mark]) -> Iterator[Host]:
        states, groups = set(self._options.states), set(self._options.groups)
        for host in hosts:
            if (states and states.isdisjoint(host.marks)) or (groups and groups.isdisjoint(host.groups)):
                continue
            if self._options.trouble and host.marks == ("online",):
                continue
            counted.update(host.marks)
            self._total += 1
            yield host

    def _print(self, host: Host, terminal: Terminal) -> None:
        if self._options.as_json:
            document = {"host": host.host, "state": host.state, **msgspec.to_builtins(host)}
            sys.stdout.write(safe_json(msgspec.json.encode(document).decode()) + "\n")
            return
        line, state = _row(host), f" {host.state} "
        text = Text(line)
        at = line.find(state, _WIDTHS[0])
        text.stylize(_STYLES[host.state], at + 1, at + len(state) - 1)
        terminal.print(text)
        for note in host.notes:
            for part in terminal.lines(Text(f"    {sanitise(note)}", style="dim"), 4):
                terminal.print(part)

    def _finish(self, scan: Scan, counted: Counter[Mark], terminal: Terminal) -> None:
        from garrison.fleet.etcd.hosts import MARKS

        if self._options.as_json:
            if self._options.summary:
                document: dict[str, int] = {
                    "hosts": self._total,
                    **{mark: counted[mark] for mark in MARKS},
                    "revision": scan.revision,
                }
                sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
            return
        terminal.print(Text(f"{plural(self._total, 'host')}: {_counts(counted)} (revision {scan.revision})"))
        if scan.unknown:
            terminal.print(Text(f"{plural(scan.unknown, 'key')} of no known kind, not shown", style="yellow"))


def _counts(counted: Counter[Mark]) -> str:
    """Return how many there are: first the two that exclude each other, then what holds of some of them."""
    from garrison.fleet.etcd.hosts import MARKS

    apart: tuple[Mark, ...] = ("online", "gone")
    there = ", ".join(f"{count(counted[mark])} {mark}" for mark in apart if counted[mark])
    more = ", ".join(f"{count(counted[mark])} {mark}" for mark in MARKS if mark not in apart and counted[mark])
    return "; ".join(part for part in (there, more) if part) or "none"


def _row(host: Host) -> str:
    states = Counter(worker.state for worker in host.workers)
    workers = ", ".join(f"{number} {state}" for state, number in states.most_common())
    cells = (host.host, host.state, ",".join(host.groups), host.version, ",".join(host.ip_addresses[:1]), workers)
    return _columns(tuple(sanitise(cell, limit=64) or "-" for cell in cells))


def _columns(cells: tuple[str, ...]) -> str:
    """Set cells into columns of fixed width: rows are printed as they come, so that a fleet of any size is listed."""
    text = ""
    for i, cell in enumerate(cells):
        width = _WIDTHS[i] if i < len(_WIDTHS) else 0
        text += cell.ljust(width) + (" " if i < len(cells) - 1 else "")
    return text.rstrip()


def read_expected(path: str) -> frozenset[str]:
    """Return the hosts that a file lists: one name a line, or lines of an earlier ``--json``; ``-``: standard input.

    Raises:
        CliError: It cannot be read, or a line is neither.
    """
    from garrison.fleet.etcd.hosts import is_host

    found = set()
    try:
        with sys.stdin.buffer if path == "-" else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8", "replace").strip()
                if not line or line.startswith("#"):
                    continue
                host = _host_of(line)
                if not is_host(host):
                    raise CliError(
                        f"{path}, line {number}: {sanitise(line, limit=60)!r} is no host",
                        "one name a line, or what `garrison fleet hosts --json` has printed",
                        exits.USAGE,
                    )
                found.add(host)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror}", "", exits.USAGE) from None
    return frozenset(found)


def _host_of(line: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        host = msgspec.json.decode(line)["host"]
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError):
        return ""
    return host if isinstance(host, str) else ""
