"""``make bench``: measures the agent beside its peers in one run and prints a Markdown table.

Exit codes: 0 measured (whether or not the goals were met), 1 something could not be measured, 64 usage, 69 not
possible here, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from benchmarks import breaking, etcd, events, fleet, idle, killswitch, restart, shipping, spooling, start
from benchmarks.context import Context
from benchmarks.report import Report, markdown
from benchmarks.supervisord import PeerMissingError, install
from garrison.supervisor.control.protocol import ControlError
from garrison.supervisor.stores.etcd.errors import EtcdError
from tests.etcd.binaries import MissingError

BENCHMARKS: dict[str, Callable[[Context], Report]] = {
    "killswitch": killswitch.run,
    "start": start.run,
    "events": events.run,
    "restart": restart.run,
    "idle": idle.run,
    "breaking": breaking.run,
    "etcd": etcd.run,
    "fleet": fleet.run,
    "shipping": shipping.run,
    "spooling": spooling.run,
}


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few samples, about three minutes")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="samples of each series")
    parser.add_argument("--json", metavar="FILE", help="also write every measurement to a file")
    parser.add_argument("--folder", metavar="DIR", help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        print(f"there is no benchmark {unknown[0]!r}, only {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 64
    if os.geteuid() != 0:
        print("The benchmarks need root: real caps and a real killswitch are what is measured.", file=sys.stderr)
        return 69
    try:
        install()
    except PeerMissingError as error:
        print(error, file=sys.stderr)
        return 69
    # Whatever the shell has set: everything that was started is ended on the way out.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="garrison-bench-", dir=arguments.folder))
    context = Context(folder, quick=arguments.quick, samples=arguments.samples)
    try:
        reports = [_measure(name, context) for name in arguments.names or BENCHMARKS]
    except KeyboardInterrupt:
        print("interrupted; everything that was started has been ended", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(markdown(reports, context.noise.facts()))
    if arguments.json:
        document = {"facts": context.noise.facts(), "reports": [report.document() for report in reports]}
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(report.error for report in reports) else 0


def _measure(name: str, context: Context) -> Report:
    print(f"{name} ...", file=sys.stderr, end="", flush=True)
    begin = time.monotonic()
    # The harness's own collections must not fall into a measurement of two milliseconds.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        report = BENCHMARKS[name](context)
    except (AssertionError, OSError, ControlError, EtcdError, MissingError, queue.Empty, ValueError) as error:
        report = Report(name, error=f"{type(error).__name__}: {error}")
    finally:
        gc.enable()
    print(f" {time.monotonic() - begin:.0f} s{': ' + report.error if report.error else ''}", file=sys.stderr)
    return report


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    # Once is enough: a second one must not interrupt the clean-up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
