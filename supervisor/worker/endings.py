"""What a process's end is called, and what of it is told. Pure."""

from __future__ import annotations

import os
import signal
from typing import Any

from garrison.supervisor.nursery.protocol import Exited


def describe_exit(report: Exited) -> str:
    """Return how a process ended, in words: ``exit status 3`` or ``killed by SIGSEGV``."""
    if os.WIFSIGNALED(report.status):
        number = os.WTERMSIG(report.status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"killed by {name}" + (" (core dumped)" if os.WCOREDUMP(report.status) else "")
    return f"exit status {os.WEXITSTATUS(report.status)}"


def exit_status(report: Exited | None) -> int | None:
    """Return the exit status of a process that ended by itself; None where a signal or nobody knows what ended it."""
    if report is None or os.WIFSIGNALED(report.status):
        return None
    return os.WEXITSTATUS(report.status)


def facts_of(pid: int, epoch: int, report: Exited | None, lost: int) -> dict[str, Any]:
    """Return what an event tells of an ended process.

    Args:
        pid: Its process id.
        epoch: Its number among the processes of the worker.
        report: The nursery's report; None where the nursery died, or the process hangs in the kernel.
        lost: Events that it had numbered and not handed over.
    """
    facts: dict[str, Any] = {"pid": pid, "epoch": epoch, "lost_at_exit": lost}
    if report is not None:
        facts |= {
            "exit": describe_exit(report),
            "cpu_seconds": round(report.user_seconds + report.system_seconds, 3),
            "max_rss_bytes": report.max_rss_bytes,
        }
    return facts
