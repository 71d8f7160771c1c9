"""Tasks: one piece of work run in a module's thread, answered by exactly one result."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from garrison.ipc.messages import Result, Task
from garrison.workers.runtime.encoding import printable, sanitise
from garrison.workers.runtime.logs import describe
from garrison.workers.runtime.module import Module, Sandbox

RESULT_BYTES: Final = 32 * 1024
"""Largest value of a result, encoded."""
ERROR_BYTES: Final = 2048


def refused(task: Task, error: str) -> Result:
    """Return the result of a task that did not succeed."""
    return Result(id=printable(task.id, 256), ok=False, error=printable(error, ERROR_BYTES))


def perform(task: Task, module: Module, box: Sandbox) -> Result:
    """Run a task and return its result. Whatever the task raises is in the result."""
    if task.not_after is not None and time.time() > task.not_after:
        return refused(task, f"task {task.task!r} came too late: it was not to run after {task.not_after:.0f}")
    try:
        value = module.task(box, task.task, task.arguments)
    except LookupError as error:
        return refused(task, _text(error))
    # A task is the operator's question; a wrong one must not end the detection that runs beside it.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return refused(task, f"task {task.task!r} failed: {describe(error)}")
    try:
        return Result(id=task.id, ok=True, value=_portable(value))
    except ValueError as error:
        return refused(task, f"task {task.task!r} ran, but its result cannot be sent: {error}")


def _portable(value: Any) -> Any:
    """Return the value as the master will see it.

    Raises:
        ValueError: It has no msgpack form, or is too large.
    """
    try:
        try:
            raw = msgspec.msgpack.encode(value)
        except UnicodeEncodeError:
            raw = msgspec.msgpack.encode(sanitise(value))
        if len(raw) > RESULT_BYTES:
            raise ValueError(f"it has {len(raw)} bytes and {RESULT_BYTES} are allowed")
        # Decoded here first: what is nested too deep or has lists for keys would look like a breach there.
        return msgspec.msgpack.decode(raw)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(describe(error)) from error


def _text(error: LookupError) -> str:
    # str(KeyError("x")) is "'x'", quotes included; the argument is what the module wrote.
    return error.args[0] if len(error.args) == 1 and isinstance(error.args[0], str) else describe(error)
