"""What the nursery process runs: one thread, one poll, forks on request, reaps, reports.

It ignores the signals that end the master, so that an orderly stop stays the master's to lead. When the
master's end of the socket closes, for whatever reason, it kills the whole ``workers`` node and exits:
nothing survives the master. It has no parent-death signal of its own, because that would kill it before
it could do so.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import time

import setproctitle

from garrison.supervisor.cgroups.base import KillPlan
from garrison.supervisor.cgroups.kill import carry_out
from garrison.supervisor.linux import become_subreaper
from garrison.supervisor.nursery import child, fork, protocol
from garrison.supervisor.rights import seccomp

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
FINAL_REAP_SECONDS = 1.0


class Nursery:
    """The nursery's state: its socket to the master and the children that it has not reaped."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._children: set[int] = set()
        self._plan = KillPlan()
        self._forks_into_cgroups = not fork.why_not()
        self._signals: tuple[int, ...] = ()

    def run(self) -> int:
        """Serve until the master is gone, then end everything; return the exit status."""
        try:
            self._serve()
        finally:
            # Also where a request could not be understood or taken: a new nursery begins with a clean house.
            self._end_everything()
        return 0

    def _serve(self) -> None:
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        # Only the wakeup descriptor matters; a handler must exist for it to be written.
        signal.signal(signal.SIGCHLD, lambda _signo, _frame: None)
        self._signals = child.handled()
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            try:
                if wake_read in ready:
                    os.read(wake_read, 4096)
                    self._reap()
                if self._sock.fileno() in ready and not self._serve_one():
                    break
            except (BrokenPipeError, ConnectionResetError):
                break

    def _serve_one(self) -> bool:
        data, fds = protocol.receive(self._sock)
        if not data:
            return False
        request = protocol.decode_for_nursery(data)
        if isinstance(request, protocol.Spawn):
            self._spawn(request, fds)
        elif isinstance(request, protocol.Signal):
            # Our own unreaped child: its pid cannot have been given to another process.
            if request.pid in self._children:
                os.kill(request.pid, request.signal)
        elif isinstance(request, protocol.Setup):
            self._set_up(request)
        else:
            modules = tuple(sorted(sys.modules))
            threads = len(os.listdir("/proc/self/task"))
            protocol.send(self._sock, protocol.Inspected(threads, tuple(self._children), modules))
        return True

    def _set_up(self, setup: protocol.Setup) -> None:
        self._plan = KillPlan(
            kill_files=setup.kill_files,
            freezer=setup.freezer,
            procs_dirs=setup.procs_dirs,
            quota_files=setup.quota_files,
        )
        # What it frees meanwhile leaves holes, which children fill: each costs a page that they shared before.
        gc.disable()
        for name in setup.preload:
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001  a worker's broken code must not take the nursery along
                sys.stderr.write(f"garrison: nursery: {name} cannot be loaded ahead: {error!r}\n")
        seccomp.prepare()
        # What is loaded now is shared by every child: out of the collector's sight it stays unwritten.
        gc.freeze()
        gc.enable()
        protocol.send(self._sock, protocol.Hello(os.getpid()))

    def _spawn(self, request: protocol.Spawn, fds: list[int]) -> None:
        try:
            if len(fds) != protocol.SPAWN_FDS:
                protocol.send(self._sock, protocol.Refused(request.id, f"{len(fds)} descriptors came along"))
                return
            parent = os.getpid()
            try:
                pid, pidfd = self._fork(request.born_in)
            except OSError as error:
                protocol.send(self._sock, protocol.Refused(request.id, f"fork: {error.strerror}"))
                return
            if pid == 0:
                try:
                    child.become(request, fds, parent, self._signals)
                finally:
                    # It never returns; if it did, this would go on as a second nursery.
                    os._exit(child.NOT_STARTED)
            self._children.add(pid)
        finally:
            for fd in fds:
                os.close(fd)
        if pidfd is None:
            # Before Linux 5.3: the master signals through us instead.
            protocol.send(self._sock, protocol.Spawned(request.id, pid))
            return
        try:
            protocol.send(self._sock, protocol.Spawned(request.id, pid), (pidfd,))
        finally:
            os.close(pidfd)

    def _fork(self, node: str) -> tuple[int, int | None]:
        if node and self._forks_into_cgroups:
            try:
                return fork.into(node)
            except OSError:
                # The master moves the child then, and knows best what to say where that fails, too.
                pass
        return fork.plain()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._children:
                # An escaped grandchild that came to us as the nearest subreaper.
                continue
            self._children.discard(pid)
            protocol.send(
                self._sock,
                protocol.Exited(
                    pid=pid,
                    status=status,
                    user_seconds=usage.ru_utime,
                    system_seconds=usage.ru_stime,
                    max_rss_bytes=usage.ru_maxrss * 1024,
                ),
            )

    def _end_everything(self) -> None:
        try:
            carry_out(self._plan)
        except OSError as error:
            sys.stderr.write(f"garrison: nursery: the workers node could not be killed: {error}\n")
        for pid in self._children:
            # Also those that are not in the workers node yet. Unreaped, so the pid is theirs.
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + FINAL_REAP_SECONDS
        while time.monotonic() < deadline:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(0.005)


def main(fd: int) -> int:
    """Run the nursery on the inherited SOCK_SEQPACKET descriptor `fd`; returns the exit status."""
    for signo in IGNORED:
        signal.signal(signo, signal.SIG_IGN)
    become_subreaper()
    setproctitle.setproctitle("garrison: nursery")
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    return Nursery(sock).run()
