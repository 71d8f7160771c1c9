"""Checks that compare settings with each other, or with what the agent has. Pure."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from garrison.supervisor.settings import units
from garrison.supervisor.settings.convert import join, nearest, show
from garrison.supervisor.settings.fields import settings_of
from garrison.supervisor.settings.problems import Collector
from garrison.supervisor.settings.schema import (
    BUILTIN_WORKERS,
    WORKER_NAME_PATTERN,
    AggregateBudget,
    Budget,
    EtcdStore,
    KafkaSink,
    Metrics,
    Settings,
    Sink,
    Spool,
    Store,
    Worker,
)

AGENT = "agent"
"""What stands in place of a worker's name where the agent speaks of itself."""
CONTROL_SOCKET = "control.sock"
MAX_SOCKET_PATH = 107
"""Longest path of a UNIX socket, bytes: `sun_path` has 108, one of them for the final NUL."""

MIN_SPOOL_BYTES = 1024 * 1024
"""Smallest spool: ten of the largest batches, and SQLite's log."""

CODECS = {"lz4": ("lz4", "lz4"), "zstd": ("zstandard", "zstandard"), "snappy": ("snappy", "python-snappy")}
"""What a compression needs: the module, and the package that brings it. The others are Python's own."""

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_CLASS_IN_PACKAGE = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER})*:{_IDENTIFIER}", re.ASCII)
_CLASS_IN_FILE = re.compile(rf"/.+\.py:{_IDENTIFIER}", re.ASCII)
_VARIABLE = re.compile(_IDENTIFIER, re.ASCII)


S = TypeVar("S", bound=msgspec.Struct)


def check_budget(budget: Budget, key: str, problems: Collector, aggregate: AggregateBudget | None = None) -> None:
    """Note what does not fit together within a budget, and between it and the caps of all workers.

    Args:
        budget: The budget.
        key: Its dotted key; empty where the document is the budget itself.
        problems: Takes the problems. Values that already have one are not compared.
        aggregate: Caps of all workers together, or None where they are not known here.
    """
    prefix = f"{key}." if key else ""
    _at_most(budget, "memory_high", "memory_max", prefix, problems)
    _at_most(budget, "cpu_trip_percent", "cpu_quota_percent", prefix, problems)
    if aggregate is None:
        return
    for name in ("memory_max", "cpu_quota_percent"):
        mine, whole = getattr(budget, name), getattr(aggregate, name)
        if mine > whole and not problems.failed(f"{prefix}{name}", f"agent.budget.{name}"):
            problems.add(
                f"{prefix}{name}",
                f"is {_text(name, mine)}, above agent.budget.{name}, which caps all workers together "
                f"at {_text(name, whole)}",
                f"Lower this one or raise agent.budget.{name}",
            )


def _at_most(budget: Budget, low: str, high: str, prefix: str, problems: Collector) -> None:
    below, above = getattr(budget, low), getattr(budget, high)
    if below <= above or problems.failed(f"{prefix}{low}", f"{prefix}{high}"):
        return
    default = " (the default)" if below == getattr(Budget(), low) else ""
    problems.add(
        f"{prefix}{low}",
        f"is {_text(low, below)}{default}, above {prefix}{high}, which is {_text(high, above)}",
        f"Set {low} to at most {high}",
    )


def _text(name: str, value: float) -> str:
    return units.format_bytes(int(value)) if name.startswith("memory") else f"{value:g} %"


def finish_worker(name: str, worker: Worker, key: str, problems: Collector) -> Worker:
    """Return a worker with its modules filled in; note what cannot run."""
    if re.fullmatch(WORKER_NAME_PATTERN, name, re.ASCII) is None:
        problems.add(
            key, "is no valid worker name", "Use up to 32 lower-case letters, digits, '_' and '-', a letter first"
        )
        return worker
    if name == AGENT:
        problems.add(key, "is the name that the agent's own events bear", "Give the worker another name")
        return worker
    if "none" in worker.capabilities and len(worker.capabilities) > 1:
        problems.add(f"{key}.capabilities", 'has "none" among others', "Leave one or the other out")
    if problems.failed(f"{key}.modules", f"{key}.command"):
        return worker
    if worker.modules and worker.command:
        problems.add(f"{key}.command", "cannot be combined with modules", "Leave one of the two out")
    if worker.command:
        _check_command(worker, key, problems)
        return worker
    if worker.environment:
        problems.add(
            f"{key}.environment", "is only for an external program", "Set command, or use settings for a module"
        )
    if not worker.modules:
        if name in BUILTIN_WORKERS:
            return msgspec.structs.replace(worker, modules=(name,))
        problems.add(
            key,
            f"is no built-in worker; there are: {', '.join(BUILTIN_WORKERS)}",
            _did_you_mean(name) + f"For code of your own set {key}.modules or {key}.command",
        )
    for index, spec in enumerate(worker.modules):
        _check_module(spec, f"{key}.modules[{index}]", problems)
    return worker


def _did_you_mean(name: str) -> str:
    near = nearest(name, BUILTIN_WORKERS)
    return f'Did you mean "{near}"? ' if near else ""


def _check_module(spec: str, key: str, problems: Collector) -> None:
    if spec in BUILTIN_WORKERS:
        return
    if _CLASS_IN_PACKAGE.fullmatch(spec):
        if spec.partition(":")[0].endswith(".py"):
            problems.add(key, f"is {show(spec)}, a file without its folder", 'Write "/path/file.py:Class"')
        return
    if spec.startswith("/"):
        if _CLASS_IN_FILE.fullmatch(spec) and ".." not in spec.split("/"):
            return
        problems.add(key, f"is {show(spec)}; a file is given as \"/path/file.py:Class\", without '..'")
        return
    problems.add(
        key,
        f"{show(spec)} is no built-in module ({', '.join(BUILTIN_WORKERS)}), "
        'no "package.module:Class" and no "/path/file.py:Class"',
        _did_you_mean(spec).rstrip(),
    )


def _check_command(worker: Worker, key: str, problems: Collector) -> None:
    program = worker.command[0]
    if not program.startswith("/"):
        problems.add(
            f"{key}.command[0]", f"is {show(program)}; the program's path must be absolute", "No PATH is searched"
        )
    if worker.system_calls == "observe":
        problems.add(f"{key}.system_calls", 'is "observe", which no program can start under', 'Use "usual"')
    for name in worker.environment:
        if _VARIABLE.fullmatch(name) is None:
            problems.add(
                f"{key}.environment.{join(name)}",
                "is no name of an environment variable",
                "Use letters, digits and '_'",
            )


def finish(settings: Settings, problems: Collector) -> Settings:
    """Return the settings with each worker's modules filled in, after all checks across tables."""
    workers = {}
    # `root` leaves workers the agent's own user; that of another agent is none that it could become.
    own = settings.agent.worker_user == "root" and os.geteuid() != 0
    common = "" if own else settings.agent.worker_user
    for name, worker in settings.workers.items():
        key = f"workers.{join(name)}"
        worker = finish_worker(name, worker, key, problems)
        workers[name] = msgspec.structs.replace(worker, user=worker.user or common)
        check_budget(worker.budget, f"{key}.budget", problems, settings.agent.budget)
    check_etcd(settings.store, problems)
    check_kafka(settings.sink, problems)
    check_metrics(settings.metrics, problems)
    check_spool(settings.spool, problems)
    return msgspec.structs.replace(settings, workers=workers)


def check_metrics(metrics: Metrics, problems: Collector) -> None:
    """Note what does not fit together in the settings of the metrics."""
    keys = ("metrics.socket_group", "metrics.listen")
    if metrics.socket_group and not metrics.listen.startswith("/") and not problems.failed(*keys):
        problems.add(keys[0], "needs a UNIX socket", "Set metrics.listen to the path of one, or leave socket_group out")


def check_spool(spool: Spool, problems: Collector) -> None:
    """Note what does not fit together in the settings of the spool."""
    if problems.failed("spool.max_bytes"):
        return
    if 0 < spool.max_bytes < MIN_SPOOL_BYTES:
        problems.add(
            "spool.max_bytes",
            f"is {units.format_bytes(spool.max_bytes)}, too small to be of use",
            "Set at least 1 MiB, or 0 for no spool",
        )
    if spool.max_bytes == 0 and spool.durability == "always" and not problems.failed("spool.durability"):
        problems.add(
            "spool.durability",
            'is "always", and there is no spool: max_bytes is 0',
            "Set spool.max_bytes, or leave durability out",
        )


def check_etcd(store: Store, problems: Collector) -> None:
    """Note what does not fit together in the settings of the etcd store."""
    etcd, key = store.etcd, "store.etcd"
    if store.backend == "etcd" and not etcd.endpoints and not problems.failed(f"{key}.endpoints"):
        problems.add(
            f"{key}.endpoints", 'is empty, and backend is "etcd"', 'List the members, as in ["10.0.0.1:2379", "etcd2"]'
        )
    for one, other in (("cert", "key"), ("key", "cert"), ("cert", "ca_cert"), ("username", "password_file")):
        _needs(etcd, key, one, other, problems)
    _needs(etcd, key, "password_file", "username", problems)
    if problems.failed(f"{key}.endpoints", f"{key}.ca_cert"):
        return
    for index, endpoint in enumerate(etcd.endpoints):
        if endpoint.startswith("https://") and not etcd.ca_cert:
            problems.add(f"{key}.endpoints[{index}]", f"is {show(endpoint)}, without ca_cert", f"Set {key}.ca_cert")
        elif endpoint.startswith("http://") and etcd.ca_cert:
            problems.add(
                f"{key}.endpoints[{index}]",
                f"is {show(endpoint)}, with ca_cert: TLS is used for all endpoints or for none",
                "Write https://, or leave ca_cert out",
            )


def check_kafka(sink: Sink, problems: Collector) -> None:
    """Note what does not fit together in the settings of the Kafka sink."""
    kafka, key = sink.kafka, "sink.kafka"
    if sink.backend == "kafka" and not kafka.bootstrap_servers and not problems.failed(f"{key}.bootstrap_servers"):
        problems.add(
            f"{key}.bootstrap_servers",
            'is empty, and backend is "kafka"',
            'List some brokers, as in ["kafka1:9092"]; where only the key kafka/host of the store names them, leave '
            "backend as it is",
        )
    for one, other in (("cert", "key"), ("key", "cert"), ("cert", "tls"), ("ca_cert", "tls")):
        _needs(kafka, key, one, other, problems)
    for one, other in (("username", "password_file"), ("password_file", "username")):
        _needs(kafka, key, one, other, problems)
    login, named = kafka.sasl_mechanism != "none", bool(kafka.username)
    if login != named and not problems.failed(f"{key}.sasl_mechanism", f"{key}.username"):
        have, lack = ("sasl_mechanism", "username") if login else ("username", "sasl_mechanism")
        problems.add(f"{key}.{have}", f"needs {lack}", f"Set {key}.{lack}, or leave {have} out")
    module, package = CODECS.get(kafka.compression, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        problems.add(
            f"{key}.compression",
            f"is {show(kafka.compression)}, which needs the Python package {package}, and the agent has none",
            f'Write "gzip", or install {package} beside the agent',
        )


def _needs(table: EtcdStore | KafkaSink, key: str, one: str, other: str, problems: Collector) -> None:
    keys = (f"{key}.{one}", f"{key}.{other}")
    if getattr(table, one) and not getattr(table, other) and not problems.failed(*keys):
        problems.add(keys[0], f"needs {other}", f"Set {keys[1]}, or leave {one} out")


def needs_restart(old: Settings, new: Settings) -> tuple[str, ...]:
    """Return the dotted keys of settings that differ and that only a restart of the agent takes over."""
    return tuple(_fixed_differences(old, new, ""))


def keep_fixed(old: S, new: S) -> S:
    """Return the new settings with those of the old ones in place that only a restart takes over."""
    kept: dict[str, object] = {}
    for name, setting in settings_of(type(old)).items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, msgspec.Struct):
            kept[name] = keep_fixed(before, after)
        elif setting.shape.extra.get("restart"):
            kept[name] = before
    return msgspec.structs.replace(new, **kept)


def _fixed_differences(old: msgspec.Struct, new: msgspec.Struct, key: str) -> Iterator[str]:
    for name, setting in settings_of(type(old)).items():
        before, after = getattr(old, name), getattr(new, name)
        if isinstance(before, msgspec.Struct):
            yield from _fixed_differences(before, after, f"{key}{name}.")
        elif setting.shape.extra.get("restart") and before != after:
            yield f"{key}{name}"


def check_run_dir(run_dir: str, problems: Collector) -> None:
    """Note a run directory whose control socket would have too long a path for the kernel."""
    if len(f"{run_dir}/{CONTROL_SOCKET}".encode()) > MAX_SOCKET_PATH:
        room = MAX_SOCKET_PATH - len(CONTROL_SOCKET) - 1
        problems.add(
            "agent.run_dir",
            f"is {show(run_dir)}: too long for a UNIX socket in it, which may have {MAX_SOCKET_PATH} bytes",
            f"Set agent.run_dir to a path of at most {room} bytes",
        )
