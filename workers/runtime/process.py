"""The worker process: the main thread, which alone reads and writes the pipes."""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from typing import Final

from garrison.ipc.channel import ChannelClosedError, FrameReceiver
from garrison.ipc.frames import MAX_DOWN_BYTES, ProtocolError
from garrison.ipc.messages import (
    EXIT_WITHOUT_MODULE,
    Ack,
    Beat,
    Config,
    Control,
    ModuleBeat,
    Ready,
    Result,
    Stop,
    Task,
    decode_down,
)
from garrison.workers.runtime.applying import Applying
from garrison.workers.runtime.assignment import Assignment
from garrison.workers.runtime.catcher import ModuleThread
from garrison.workers.runtime.emitter import Emitter
from garrison.workers.runtime.encoding import printable
from garrison.workers.runtime.loader import Loaded, load_all
from garrison.workers.runtime.logs import LevelFilter, PipeLogger, trace
from garrison.workers.runtime.modulewatch import ModuleWatch
from garrison.workers.runtime.notices import Notices
from garrison.workers.runtime.outbox import Outbox
from garrison.workers.runtime.tasks import refused
from garrison.workers.runtime.uplink import Uplink
from garrison.workers.runtime.wakeup import Wakeup

EXIT_OK: Final = 0
EXIT_BROKEN: Final = 70
"""The master sent what is no message, or the runtime itself failed; a line on stderr says which (EX_SOFTWARE)."""
EXIT_CONFIG: Final = 78
"""None of the modules can be loaded (EX_CONFIG)."""

READY_SECONDS: Final = 2.0
"""`ready` is sent when every module has come through `init`, or after this time where one takes longer."""
MODULES_STOP_SECONDS: Final = 1.5
FLUSH_SECONDS: Final = 1.5
MODULES_STOP_ALONE_SECONDS: Final = 0.5
"""How long modules may take to close what they have when the master is gone."""
MIN_BEAT_SECONDS: Final = 0.05
MAX_BEAT_SECONDS: Final = 3600.0
MAX_MODULES: Final = 64
_BEAT_ERROR_CHARACTERS: Final = 8192  # of all modules together, so that a beat always fits its frame

_IGNORED = (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def poll_milliseconds(seconds: float) -> int:
    """Return a sleep in poll(2)'s unit: nothing for what is due or overdue by any amount, at most an hour.

    Up to the next millisecond, because waking a fraction early would mean sleeping again.
    """
    return math.ceil(min(max(seconds, 0.0), 3600.0) * 1000)


def run(assignment: Assignment, loaded: Loaded | None = None) -> int:
    """Be a worker until told to stop; return the exit status: 0, 70, 75 (a module does not stop) or 78.

    Args:
        assignment: What it is.
        loaded: Its modules, where they have been loaded; the files may be out of reach by now.

    Call it in the main thread of a process with one thread. The caller then leaves with ``os._exit``, because
    a module that does not come back must not keep the process.
    """
    try:
        return _Worker(assignment, loaded).run()
    # The last resort: whatever it is, the master learns it from the exit status, and people from stderr.
    except Exception as error:  # noqa: BLE001
        _complain(assignment.worker, f"the runtime failed: {trace(error)}")
    return EXIT_BROKEN


class _Worker:
    def __init__(self, assignment: Assignment, loaded: Loaded | None) -> None:
        self._assignment = assignment
        self._loaded = loaded
        self._wakeup = Wakeup()
        self._stop: str | None = None
        self._beat_seconds = _beat_seconds(assignment.beat_seconds)
        self._beat_at = time.monotonic()
        self._ready_at: float | None = None
        self._ready_sent = False
        self._levels = LevelFilter()
        self._notices = Notices(self._wakeup.set)
        self._outbox = Outbox(assignment.queue_bytes, self._wakeup.set)
        self._log = PipeLogger(self._notices, self._levels)
        self._lost_results = 0
        self._modules: list[ModuleThread] = []
        self._failures: dict[str, str] = {}
        self._uplink = Uplink(assignment.events_fd, self._notices, self._outbox, self._make_beat)
        self._receiver = FrameReceiver(assignment.config_fd, MAX_DOWN_BYTES)
        self._poll = select.poll()
        self._applying: Applying
        self._watch: ModuleWatch
        self._degraded = False
        self._configured = False

    def run(self) -> int:
        assignment = self._assignment
        self._set_up_signals()
        for fd in (assignment.config_fd, assignment.events_fd):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)  # a program that a module runs must not keep the master's pipe open
        self._poll.register(self._wakeup.fileno(), select.POLLIN)
        self._poll.register(assignment.config_fd, select.POLLIN)
        # Without events asked for, poll still tells that the reader is gone.
        self._poll.register(assignment.events_fd, 0)
        self._load()
        if assignment.rights:
            self._log.info("%s", assignment.rights)
        if assignment.lacks:
            self._log.notice(
                "the agent does not have %s to give, which its modules work with: they see less",
                ", ".join(assignment.lacks),
            )
        names = [name for name, _spec in assignment.modules]
        self._watch = ModuleWatch(self._modules, (assignment.host, assignment.worker), assignment.state_dir, self._log)
        took = self._watch.settings_changed
        applying = Applying(self._modules, names, self._notices.offer, self._wakeup.set, self._log, took)
        self._applying = applying
        if not self._modules:
            self._stop = "none of its modules can be loaded"
        try:
            while self._stop is None:
                self._turn(applying)
            self._wind_up()
        except ChannelClosedError:
            # Nobody is left to tell anything. The kernel kills us with the master; this is for when it did not.
            self._stop_modules_alone()
        except ProtocolError as error:
            _complain(assignment.worker, f"the master sent what cannot be understood: {error}")
            self._stop_modules_alone()
            return EXIT_BROKEN
        if self._watch.given_up:
            return EXIT_WITHOUT_MODULE
        return EXIT_OK if self._modules else EXIT_CONFIG

    def _set_up_signals(self) -> None:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, _number: int, _frame: object) -> None:
        self._stop = self._stop or "SIGTERM"
        self._wakeup.set()

    def _load(self) -> None:
        assignment = self._assignment
        if not 0 < len(assignment.modules) <= MAX_MODULES:
            raise ValueError(f"a worker has 1 to {MAX_MODULES} modules, not {len(assignment.modules)}")
        if len({name for name, _spec in assignment.modules}) < len(assignment.modules):
            raise ValueError("two modules of this worker have the same name")
        kinds, failures = self._loaded or load_all(assignment.modules)
        emitter = Emitter(self._outbox, assignment.worker)
        for name, error in failures.items():
            self._failures[name] = printable(str(error), 512)
            self._log.critical("%s; it does not run", error)
            _complain(assignment.worker, str(error))
        for name, kind in kinds.items():
            self._modules.append(
                ModuleThread(
                    name=name,
                    kind=kind,
                    worker=assignment.worker,
                    host=assignment.host,
                    state_dir=assignment.state_dir,
                    emitter=emitter,
                    log=PipeLogger(self._notices, self._levels, name),
                    answer=self._answer,
                    changed=self._wakeup.set,
                )
            )

    def _turn(self, applying: Applying) -> None:
        """One turn of the loop: what is due, what can be written, then sleep, then what came."""
        now = time.monotonic()
        if self._ready_at is None:  # what became of the first configuration is told after `ready`
            applying.step(now)
        if applying.started:
            self._watch.step(now)
            if self._watch.given_up:
                self._stop = f"module {self._watch.given_up} does not return"
                return
        self._announce(applying, now)
        if now >= self._beat_at:
            self._beat_at = now + self._beat_seconds
            self._uplink.beat_due = True
            for module in self._modules:
                module.log.report_suppressed()
            self._report_lost_results()
        more = self._uplink.pump()
        self._sleep(0.0 if more else self._until_due(applying, time.monotonic()))

    def _until_due(self, applying: Applying, now: float) -> float:
        """Return how long nothing is to be done, seconds, apart from what wakes by itself."""
        times = [self._beat_at, applying.deadline(), self._ready_at, self._watch.deadline()]
        if self._uplink.blocked:
            self._outbox.writer_waits_for_pipe()
        else:
            times.append(self._outbox.next_flush(now))
        return min((at for at in times if at is not None), default=math.inf) - now

    def _sleep(self, seconds: float) -> None:
        """Sleep so long, or until something comes; take in what came."""
        config_fd, events_fd = self._assignment.config_fd, self._assignment.events_fd
        self._poll.modify(events_fd, select.POLLOUT if self._uplink.blocked else 0)
        for fd, event in self._poll.poll(poll_milliseconds(seconds)):
            if fd == config_fd:
                try:
                    self._receive()
                except ChannelClosedError:
                    # The master may close this pipe after `stop` and still read the other one.
                    if self._stop is None:
                        raise
                    self._poll.unregister(config_fd)
            elif fd == events_fd:
                if event & ~select.POLLOUT:
                    raise ChannelClosedError("the reader of the events pipe is gone")
            else:
                self._wakeup.clear()

    def _receive(self) -> None:
        for kind, payload in self._receiver.receive():
            match decode_down(kind, payload):
                case Config() as config:
                    self._configure(config)
                case Control(action):
                    self._obey(action)
                case Task() as task:
                    self._assign(task)
                case Stop(reason):
                    self._stop = reason or "the master asked"
                case Ack(priority, through):
                    self._outbox.acknowledge(priority, through)

    def _obey(self, action: str) -> None:
        if action == "reset":
            self._watch.reset(time.monotonic())
            return
        self._degraded = action == "degrade"
        for module in self._modules:
            module.mailbox.agent_degraded = self._degraded

    def _configure(self, config: Config) -> None:
        if self._stop is not None:
            return
        self._levels.set(config.log_level)
        seconds = _beat_seconds(config.beat_seconds)
        if seconds != self._beat_seconds:
            self._beat_seconds = seconds
            self._beat_at = min(self._beat_at, time.monotonic() + seconds)
        self._watch.configure(config)
        self._outbox.expect_acks(config.acks)
        if not self._configured:
            self._configured = True
            self._watch.begin(config.held, time.monotonic())
        self._applying.offer(config)

    def _announce(self, applying: Applying, now: float) -> None:
        if self._ready_sent or not applying.started:
            return
        if self._ready_at is None:
            self._ready_at = now + READY_SECONDS
        if now >= self._ready_at or all(module.came_up for module in self._modules):
            self._ready_at, self._ready_sent = None, True
            self._wakeup.set()  # for `step`, which has waited for this
            names = [printable(name, 128) for name, _spec in self._assignment.modules if name not in self._failures]
            self._notices.offer(Ready(pid=os.getpid(), modules=names))

    def _assign(self, task: Task) -> None:
        names = [module.name for module in self._modules]
        wanted = task.module or (names[0] if len(names) == 1 else "")
        module = next((module for module in self._modules if module.name == wanted), None)
        if module is None:
            error = f"no module {wanted!r}" if wanted else "the task must name its module"
            self._answer(refused(task, f"{error}; this worker runs {', '.join(names)}"))
        elif self._stop is not None:
            self._answer(refused(task, "the worker is stopping"))
        elif not module.mailbox.add_task(task):
            self._answer(refused(task, f"busy: module {module.name} has as many tasks waiting as it may have"))

    def _answer(self, result: Result) -> None:
        self._notices.offer(result)

    def _report_lost_results(self) -> None:
        lost = self._notices.lost
        if lost > self._lost_results:
            self._log.error("%d answers were not sent: the master does not read the pipe", lost - self._lost_results)
            self._lost_results = lost

    def _make_beat(self) -> Beat:
        now = time.monotonic()
        characters = min(512, _BEAT_ERROR_CHARACTERS // len(self._assignment.modules))
        queued, queued_bytes = self._outbox.queued()
        modules = [module.beat(now, characters) for module in self._modules]
        modules += [
            ModuleBeat(name=printable(name, 128), state="stopped", error=error[:characters])
            for name, error in self._failures.items()
        ]
        beat = Beat(
            emitted=self._outbox.emitted(),
            queued=queued,
            queued_bytes=queued_bytes,
            unacknowledged=self._outbox.unacknowledged(),
            dropped=self._outbox.dropped(),
            modules=modules,
            degraded=self._degraded,
        )
        self._watch.describe(beat, now)
        return beat

    def _wind_up(self) -> None:
        """Stop the modules, send what is queued and a last beat, each for a bounded time."""
        self._log.info("stopping: %s", self._stop or "")
        self._watch.end()
        self._stop_modules(MODULES_STOP_SECONDS)
        deadline = time.monotonic() + FLUSH_SECONDS
        self._uplink.beat_due = False
        self._drain(deadline)
        if not self._uplink.blocked:
            self._uplink.beat_due = True
            self._drain(deadline + 0.1)  # a beat needs no time, unless the pipe is full

    def _drain(self, deadline: float) -> None:
        while not self._uplink.empty and (left := deadline - time.monotonic()) > 0:
            more = self._uplink.pump(force=True)
            if not self._uplink.empty:
                self._sleep(0.0 if more else left)

    def _stop_modules(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for module in self._modules:
            module.mailbox.stop()
        while any(module.alive for module in self._modules) and (left := deadline - time.monotonic()) > 0:
            more = self._uplink.pump(force=True)
            # A thread wakes us at its very end, not after it: look again soon.
            self._sleep(0.0 if more else min(left, 0.02))

    def _stop_modules_alone(self) -> None:
        """Give the modules a moment to close what they have; no pipe is used any more."""
        deadline = time.monotonic() + MODULES_STOP_ALONE_SECONDS
        for module in self._modules:
            module.mailbox.stop()
        for module in self._modules:
            module.join(deadline - time.monotonic())


def _beat_seconds(seconds: float) -> float:
    if not math.isfinite(seconds):
        return 5.0
    return min(MAX_BEAT_SECONDS, max(MIN_BEAT_SECONDS, seconds))


def _complain(worker: str, text: str) -> None:
    """Write one line to stderr, unless that would block: it may be a pipe that nobody reads."""
    line = printable(f"garrison: worker {worker}: {text}", 2000) + "\n"
    try:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if poll.poll(0):
            os.write(2, line.encode())
    except OSError:
        # There is no stderr to speak of. The exit status still tells.
        return


if sys.platform != "linux":
    raise ImportError("workers run on Linux only")
