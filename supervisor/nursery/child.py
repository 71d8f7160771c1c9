"""From fork to worker: what the child does before the first instruction of worker code.

Order matters. A session of its own, then into its cgroup as far as it can by itself, then the gate: until the
master has verified where the process is, nothing else happens here. Behind the gate: limits, then user and
capabilities, then the parent-death signal (a change of user clears it), then the check that the parent did not die
meanwhile, and last the filter of system calls.
"""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import setproctitle

from garrison.supervisor.linux import become_subreaper, die_with_parent
from garrison.supervisor.nursery import giving
from garrison.supervisor.nursery.protocol import Spawn
from garrison.supervisor.rights import seccomp
from garrison.supervisor.rights.grant import RightsError

if TYPE_CHECKING:
    from garrison.workers.runtime.loader import Loaded

GATE_OPEN = b"G"
AT_THE_GATE = b"W"
"""What a child with `tasks` of its own to write says when it has done so."""
CONFIG_FD = 3
EVENTS_FD = 4
FIRST_FREE_FD = 5
NOT_STARTED = 70
"""Exit status of a child that ended before its worker code began."""
COMMAND_NOT_FOUND = 127
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def become(request: Spawn, fds: list[int], nursery_pid: int, signals: tuple[int, ...]) -> NoReturn:
    """Turn this freshly forked process into the worker; never returns.

    Args:
        request: What to become.
        fds: config (read), events (write), output (write), gate (read; a socket where the request has `tasks`).
        nursery_pid: The parent before the fork.
        signals: What `handled` returned there.
    """
    status = NOT_STARTED
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        config, events, output, gate = fds
        if request.tasks:
            _enter(request.tasks)
            os.write(gate, AT_THE_GATE)
        if os.read(gate, 1) != GATE_OPEN:
            # The master closed the gate: killed, not placed, or gone.
            os._exit(0)
        _reset_signals(signals, for_exec=bool(request.command))
        _arrange_fds(config, events, output)
        _apply_limits(request)
        os.umask(0o077)
        loaded = giving.load(request)
        given = giving.give(request, loaded)
        if request.subreaper:
            become_subreaper()
        die_with_parent()
        if os.getppid() != nursery_pid:
            os._exit(NOT_STARTED)
        setproctitle.setproctitle(f"garrison: {request.worker}")
        try:
            seccomp.install(given.system_calls)
        except OSError as error:
            raise RightsError(f"the filter of its system calls cannot be installed: {error}") from error
        status = _exec(request) if request.command else _run_modules(request, given, loaded)
    except RightsError as error:
        # One line: it is the reason that the master shows.
        sys.stderr.write(f"not started: {error}\n")
    except BaseException:  # noqa: BLE001  nothing may return into the nursery's loop in the child
        traceback.print_exc()
    finally:
        try:
            sys.stderr.flush()
        finally:
            # Whatever fails: a child that returned would go on as a second nursery.
            os._exit(status)


def _enter(tasks: tuple[str, ...]) -> None:
    for path in tasks:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)
        except OSError:
            continue  # the master finds out, and moves this process or says why that cannot be done


def handled() -> tuple[int, ...]:
    """Return the signals that do not have their default action in this process: what its children have to reset.

    Found out once, ahead of the forks, because walking through all signals dirties 300 KiB that a child else shares.
    """
    fixed = (signal.SIGKILL, signal.SIGSTOP)
    # None: a handler that was not installed by Python.
    return tuple(int(s) for s in signal.valid_signals() if s not in fixed and signal.getsignal(s) != signal.SIG_DFL)


def _reset_signals(signals: tuple[int, ...], *, for_exec: bool) -> None:
    for signo in signals:
        # Python itself wants SIGPIPE ignored, other programs expect the default.
        if signo == signal.SIGPIPE and not for_exec:
            continue
        try:
            signal.signal(signo, signal.SIG_DFL)
        except OSError:
            continue  # the C library keeps a few real-time signals for itself
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _arrange_fds(config: int, events: int, output: int) -> None:
    # First out of the way of the numbers that are about to be taken, whatever they are now.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (config, events, output)]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(high[2], 1)
    os.dup2(high[2], 2)
    os.dup2(high[0], CONFIG_FD)
    os.dup2(high[1], EVENTS_FD)
    # By what is open, not by a limit: without close_range(2) a large limit means a million calls.
    for name in os.listdir("/proc/self/fd"):
        if int(name) >= FIRST_FREE_FD:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of the listing itself


def _apply_limits(request: Spawn) -> None:
    # A worker that crashes must not fill the host's disk with its core.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for which, soft, hard in request.rlimits:
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))
    if request.nice:
        os.nice(request.nice)
    fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        if int(os.read(fd, 16)) < request.oom_score_adj:
            os.write(fd, b"%d" % request.oom_score_adj)
    finally:
        os.close(fd)


def _exec(request: Spawn) -> int:
    environment = {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "GARRISON_WORKER": request.worker,
        "GARRISON_HOST": request.host,
        "GARRISON_STATE_DIR": request.state_dir,
        **request.environment,
    }
    try:
        os.execvpe(request.command[0], list(request.command), environment)
    except OSError as error:
        sys.stderr.write(f"{request.command[0]}: {error.strerror}\n")
        return COMMAND_NOT_FOUND


def _run_modules(request: Spawn, given: giving.Given, loaded: Loaded | None) -> int:
    from garrison.workers.runtime.assignment import Assignment
    from garrison.workers.runtime.process import run

    return run(
        Assignment(
            worker=request.worker,
            modules=request.modules,
            host=request.host,
            state_dir=request.state_dir,
            beat_seconds=request.beat_seconds,
            queue_bytes=request.queue_bytes,
            rights=given.rights,
            lacks=given.lacks,
        ),
        loaded,
    )
