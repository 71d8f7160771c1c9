"""The doctor's look at the configuration, at the agent's files, and at the agent itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from garrison.supervisor.doctor import Check, Finding, fail, ok, warn

if TYPE_CHECKING:
    from garrison.supervisor.settings import Settings

_MIB: Final = 1024 * 1024
_STATE_BYTES: Final = 32 * _MIB
_RUN_BYTES: Final = 1 * _MIB


def file_checks(settings: Settings | None, problem: str = "", config: str | None = None) -> list[tuple[str, Check]]:
    """Return the checks of the configuration and of the files that it names."""
    checks: list[tuple[str, Check]] = [("configuration", partial(configuration, settings, problem, config))]
    if settings is None:
        return checks
    agent, sink, log = settings.agent, settings.sink, settings.log
    events_dir = os.path.dirname(sink.file.path)
    log_bytes = 2 * log.max_bytes if log.files else _MIB
    event_bytes = 2 * sink.file.max_bytes
    checks += [
        ("run_dir", partial(directory, "run_dir", agent.run_dir, _RUN_BYTES)),
        ("state_dir", partial(directory, "state_dir", agent.state_dir, _STATE_BYTES)),
    ]
    if events_dir == agent.log_dir:
        checks.append(("log_dir", partial(directory, "log_dir", agent.log_dir, log_bytes + event_bytes)))
    else:
        checks.append(("log_dir", partial(directory, "log_dir", agent.log_dir, log_bytes)))
        checks.append(("sink", partial(directory, "sink", events_dir, event_bytes)))
    if settings.store.backend == "directory":
        checks.append(("store", partial(store_directory, settings.store.directory.path)))
    checks.append(("killswitch", partial(killswitch_file, agent.killswitch_file)))
    return checks


def configuration(settings: Settings | None, problem: str, config: str | None) -> Iterable[Finding]:
    """Judge the configuration file: valid, and not anybody's to change."""
    name = "configuration"
    if settings is None:
        yield fail(name, problem or "has errors", "correct the file; `garrisond --check` tells whether it is good")
    elif settings.source:
        yield ok(name, f"{settings.source} is valid")
    else:
        yield ok(name, "no file; built-in defaults are in force")
    path = settings.source if settings is not None else config
    if path:
        yield from _not_writable_by_others(name, path)
    for warning in settings.warnings if settings is not None else ():
        yield warn(name, warning)


def _not_writable_by_others(name: str, path: str) -> Iterable[Finding]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IWOTH:
        yield fail(name, f"{path} can be changed by everybody (mode {mode:04o})", f"chmod o-w {path}")
    if found.st_uid not in (0, os.geteuid()):
        yield fail(name, f"{path} belongs to uid {found.st_uid}, who can change it", f"chown root {path}")


def directory(name: str, path: str, needed: int) -> Finding:
    """Judge a directory that the agent writes to: writable or to be made, private, with space left.

    Args:
        name: The setting.
        path: The directory.
        needed: Bytes that the agent may come to use there.
    """
    try:
        there = _nearest(path)
    except NotADirectoryError as error:
        return fail(name, f"{error.filename} is no directory", "move it away, or choose another place")
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        return fail(name, f"{there} cannot be written by uid {os.geteuid()}", "run as root, or choose another place")
    found = os.stat(there)
    if os.geteuid() == 0 and found.st_uid != 0 and not found.st_mode & stat.S_IWOTH:
        return fail(
            name,
            f"{there} belongs to uid {found.st_uid}; root may write it, but the agent puts CAP_DAC_OVERRIDE away",
            f"chown root {there}, or choose another place",
        )
    if there == path and found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
        return fail(
            name, f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})", f"chmod 0755 {path}"
        )
    space = os.statvfs(there)
    free = space.f_bavail * space.f_frsize
    state = f"{path}, {_size(free)} free" if there == path else f"{path} will be made in {there}, {_size(free)} free"
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return fail(name, f"{there} is on a file system that is mounted read-only", "choose another place")
    if free < _MIB or (space.f_files and not space.f_favail):
        return fail(
            name, f"{state}: no space{' (inodes)' if free >= _MIB else ''} left", "make room on that file system"
        )
    if free < needed:
        return warn(name, f"{state}; the agent may come to use {_size(needed)}", "make room on that file system")
    return ok(name, state)


def _nearest(path: str) -> str:
    """Return the directory, or the nearest one above it that is there."""
    here = os.path.abspath(path)
    while True:
        try:
            if stat.S_ISDIR(os.stat(here).st_mode):
                return here
            raise NotADirectoryError(20, "not a directory", here)
        except FileNotFoundError:
            here = os.path.dirname(here)
        except NotADirectoryError as error:
            if error.filename == here and os.path.lexists(here):
                raise
            here = os.path.dirname(here)


def store_directory(path: str) -> Finding:
    """Judge the directory store: readable, and not anybody's to change."""
    try:
        os.scandir(path).close()
        found = os.stat(path)
    except FileNotFoundError:
        return ok("store", f"{path} is not there: nothing is configured through it, and it is used once it appears")
    except OSError as error:
        return fail("store", f"{path} cannot be read: {error.strerror}", "run as root, or correct its mode")
    if found.st_mode & stat.S_IWOTH:
        return fail(
            "store",
            f"{path} can be written by everybody (mode {stat.S_IMODE(found.st_mode):04o}), who could stop any worker",
            f"chmod o-w {path}",
        )
    return ok("store", f"{path} can be read")


def killswitch_file(path: str) -> Finding:
    """Say whether the killswitch file is there."""
    if os.path.lexists(path):
        return warn("killswitch", f"{path} is there: no worker runs on this host", f"remove it to release: rm {path}")
    return ok("killswitch", f"{path} is not there")


def agent(settings: Settings | None, path: str) -> Iterable[Finding]:
    """Ask the agent how it is."""
    from garrison.supervisor.control import client as control
    from garrison.supervisor.control.protocol import SOCKET_NAME, ControlError
    from garrison.supervisor.control.status import StatusReport

    if not path:
        if settings is None:
            yield warn("agent", "its socket is not known without a valid configuration", "give `--socket PATH`")
            return
        path = os.path.join(settings.agent.run_dir, SOCKET_NAME)
    try:
        report = control.ControlClient(path, 5.0).call_as(StatusReport, "status")
    except control.AgentNotRunningError as error:
        yield warn("agent", error.message, error.remedy)
        return
    except control.PermissionDeniedError as error:
        yield warn("agent", error.message, error.remedy)
        return
    except ControlError as error:
        yield fail("agent", error.message, error.remedy)
        return
    state = report.agent
    yield ok("agent", f"{state.version} runs as pid {state.pid}, cgroups {state.cgroup_mode}")
    if state.killswitch.engaged:
        by = ", ".join(state.killswitch.scopes)
        yield warn("killswitch", f"engaged by {by or 'an unknown source'}: no worker runs", "see `garrison status`")
    for worker in report.workers:
        if worker.state in ("failed", "latched", "tripped"):
            yield warn(
                f"worker {worker.name}",
                f"{worker.state}" + (f": {worker.last_error}" if worker.last_error else ""),
                "see `garrison status`",
            )


def _size(count: int) -> str:
    return f"{count / _MIB:.0f} MiB" if count < 10240 * _MIB else f"{count / 1024 / _MIB:.0f} GiB"
