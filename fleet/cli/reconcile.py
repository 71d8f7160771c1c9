"""``garrison reconcile``: says what is missing in a topic or a file, and why."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError, complain
from garrison.fleet.cli.terminal import Terminal
from garrison.fleet.cli.text import plural, safe_json, sanitise
from garrison.fleet.reconcile.evidence import Evidence, TooMuchError
from garrison.fleet.reconcile.reading import Reader, paths_of, read_file
from garrison.fleet.reconcile.verdict import WorkerVerdict, judge
from garrison.ipc.pacing import spread

if TYPE_CHECKING:
    from garrison.supervisor.settings.schema import KafkaSink

MAX_SHARDS = 10_000
PROGRESS_MESSAGES = 100_000


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; see the command's help."""

    files: list[str]
    bootstrap: str | None
    topics: list[str]
    hosts: list[str]
    shard: str | None
    complete: bool
    everything: bool
    as_json: bool


@dataclass(slots=True)
class Found:
    """What reading gave.

    Attributes:
        complete: Whether the beginning is known to be there.
        error: Why it was not read to its end; empty where it was.
    """

    evidence: Evidence
    reader: Reader
    sources: list[str] = field(default_factory=list)
    complete: bool = False
    error: str = ""


def show(target: Target, options: Options) -> int:
    """Read, judge and print; return the exit code.

    Raises:
        CliError: There is nothing to read, or more than can be kept in memory.
    """
    evidence = Evidence()
    found = Found(evidence, Reader(evidence, _wanted(options)), complete=options.complete)
    try:
        if options.files:
            _read_files(options, found, options.files)
        elif options.bootstrap or options.topics:
            _read_topics(options, found, target.settings().sink.kafka)
        else:
            sink = target.settings().sink
            if sink.backend == "file":
                _read_files(options, found, [sink.file.path])
            else:
                _read_topics(options, found, sink.kafka)
    except TooMuchError as error:
        raise CliError(
            f"this is more than is kept in memory at once: {error}",
            "read it in parts: --shard 1/8, then --shard 2/8 and so on; each looks at an eighth of the hosts",
        ) from error
    verdicts = judge(evidence, complete=found.complete)
    if options.as_json:
        _print_json(verdicts, found, everything=options.everything)
    else:
        _print(verdicts, found, everything=options.everything)
    if found.error:
        complain(f"not read to the end: {found.error}", "what is missing may be in what was not read")
        return exits.UNAVAILABLE
    return exits.OK if all(verdict.good for verdict in verdicts) else exits.FAILED


def _wanted(options: Options) -> Any:
    hosts = set(options.hosts)
    number, of = 1, 1
    if options.shard is not None:
        first, _slash, second = options.shard.partition("/")
        if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second) <= MAX_SHARDS):
            raise CliError(
                f"--shard {options.shard} is not understood",
                f"say which part of how many: 1/4 to 4/4, at most {MAX_SHARDS}",
                exits.USAGE,
            )
        number, of = int(first), int(second)
    known: dict[str, bool] = {}

    def in_shard(host: str) -> bool:
        if len(known) > 1_000_000:
            known.clear()
        if host not in known:
            known[host] = int(spread(host, "reconcile") * of) == number - 1
        return known[host]

    def wanted(host: str) -> bool:
        return (not hosts or host in hosts) and (of == 1 or in_shard(host))

    return wanted


def _read_files(options: Options, found: Found, names: list[str]) -> None:
    if options.bootstrap or options.topics:
        raise CliError(
            "--file does not go together with --bootstrap and --topic", "read one after the other", exits.USAGE
        )
    for name in names:
        try:
            for path in paths_of(name):
                read_file(found.reader, path)
                found.sources.append(path)
        except OSError as error:
            raise CliError(f"{name} cannot be read: {error.strerror or error}", "name a file of events") from error


def _read_topics(options: Options, found: Found, settings: KafkaSink) -> None:
    from garrison.fleet.reconcile.topic import TopicError, read_topics

    if options.bootstrap:
        settings = msgspec.structs.replace(settings, bootstrap_servers=tuple(options.bootstrap.split(",")))
    if not settings.bootstrap_servers:
        raise CliError(
            "no broker is named",
            "give --bootstrap HOST:PORT, or --config FILE with [sink.kafka] bootstrap_servers",
            exits.USAGE,
        )
    topics = options.topics or sorted({settings.topic, *filter(None, msgspec.structs.astuple(settings.topics))})
    found.sources += [f"topic {topic}" for topic in topics]
    said = 0

    def progress(done: int, total: int) -> None:
        nonlocal said
        if sys.stderr.isatty() and done - said >= PROGRESS_MESSAGES:
            said = done
            sys.stderr.write(f"\r{done} of {total} messages")
            sys.stderr.flush()

    try:
        found.complete |= read_topics(found.reader, settings, topics, progress)
    except TopicError as error:
        if not found.reader.lines:
            raise CliError(
                f"nothing could be read: {error}", "are address, topic, TLS and login right?", exits.UNAVAILABLE
            ) from error
        found.error = str(error)
    finally:
        if said:
            sys.stderr.write("\n")


def _summary(verdicts: list[WorkerVerdict], found: Found) -> dict[str, Any]:
    explained: dict[str, int] = {}
    for verdict in verdicts:
        for reason, count in verdict.explained.items():
            explained[reason] = explained.get(reason, 0) + count
    return {
        "sources": found.sources,
        "complete": found.complete,
        "error": found.error,
        "lines": found.reader.lines,
        "bad_lines": found.reader.bad,
        "bad_where": found.reader.where,
        "unnumbered": found.reader.unnumbered,
        "other_hosts": found.reader.others,
        "hosts": len(found.evidence.hosts),
        "workers": len(verdicts),
        "arrived": sum(verdict.arrived for verdict in verdicts),
        "duplicates": sum(verdict.duplicates for verdict in verdicts),
        "missing": sum(verdict.missing for verdict in verdicts),
        "explained": explained,
        "before": sum(verdict.before for verdict in verdicts),
        "pending": sum(verdict.pending for verdict in verdicts),
        "unexplained": sum(verdict.unexplained for verdict in verdicts),
        "unbalanced": sum(not verdict.balanced for verdict in verdicts),
    }


def _worth_it(verdict: WorkerVerdict) -> bool:
    return not verdict.good or bool(verdict.missing - verdict.before or verdict.duplicates)


def _print_json(verdicts: list[WorkerVerdict], found: Found, *, everything: bool) -> None:
    document = {
        "summary": _summary(verdicts, found),
        "workers": [verdict for verdict in verdicts if everything or _worth_it(verdict)],
    }
    sys.stdout.write(safe_json(msgspec.json.encode(document).decode()) + "\n")


def _print(verdicts: list[WorkerVerdict], found: Found, *, everything: bool) -> None:
    terminal = Terminal()
    for verdict in verdicts:
        if everything or _worth_it(verdict):
            for line in lines_of(verdict):
                terminal.print(line)
    total = _summary(verdicts, found)
    of = f"{plural(total['workers'], 'worker')} on {plural(total['hosts'], 'host')}"
    missing = f"{total['missing']} missing, {total['unexplained']} of them without a reason"
    terminal.print(f"{plural(total['arrived'], 'event')} of {of}: {missing}; {total['duplicates']} came twice")
    if total["bad_lines"]:
        terminal.print(f"{plural(total['bad_lines'], 'line')} could not be understood:")
        for text in found.reader.where:
            terminal.print(f"  {sanitise(text)}")
    if total["unnumbered"]:
        terminal.print(
            f"{plural(total['unnumbered'], 'event')} without a sequence number: nothing is known about these"
        )


def lines_of(verdict: WorkerVerdict) -> list[str]:
    """Return what is said about a worker, for people."""
    who = f"{sanitise(verdict.host)} {sanitise(verdict.worker)}"
    lines = [f"{who}: {plural(verdict.arrived, 'event')}, {verdict.missing} missing, {verdict.duplicates} twice"]
    lines += [f"  {count} given up: {sanitise(reason)}" for reason, count in sorted(verdict.explained.items())]
    if verdict.before:
        lines.append(f"  {verdict.before} from before the start of what was read")
    if verdict.pending:
        lines.append(f"  {verdict.pending} of which the next heartbeats will tell")
    if verdict.unexplained:
        lines.append(f"  {verdict.unexplained} WITHOUT A REASON:")
    for where in verdict.where:
        ranges = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in where.ranges)
        more = " and more" if where.count > sum(b - a + 1 for a, b in where.ranges) else ""
        lines.append(f"    process {where.epoch}, {where.priority}: {ranges}{more}")
    if not verdict.balanced:
        lines.append(f"  the books of its agent do not balance: {verdict.books}")
    return lines
