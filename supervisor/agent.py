"""The agent: puts the parts together, starts them in order, keeps them in step, and stops them in order.

One asyncio loop decides. Threads only bring news (store, killswitch file) or carry things away (sink, log,
state files); the single thing that a thread does by itself is to kill, when the killswitch is engaged.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from garrison.ipc.messages import LogLevel, Priority
from garrison.supervisor import logs
from garrison.supervisor.breaker import Policy
from garrison.supervisor.cgroups.base import Cgroups, Limits
from garrison.supervisor.cgroups.detect import open_cgroups
from garrison.supervisor.cgroups.errors import CgroupError, UnsupportedError
from garrison.supervisor.control.endpoint import ControlSocketError
from garrison.supervisor.control.operations import Operations
from garrison.supervisor.control.server import ControlServer
from garrison.supervisor.control.status import AgentStatus, KillswitchStatus, StatusReport, StoreStatus
from garrison.supervisor.desired import Change, Desired
from garrison.supervisor.events.ledger import WorkerLedger
from garrison.supervisor.events.own import OwnEvents
from garrison.supervisor.events.pipeline import Pipeline
from garrison.supervisor.events.queue import Batch
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.killswitch import KillSwitch, kill_groups
from garrison.supervisor.lifecycle import ALIVE
from garrison.supervisor.linux import become_subreaper
from garrison.supervisor.lock import AlreadyRunningError, InstanceLock, LockError
from garrison.supervisor.notify import Notifier
from garrison.supervisor.nursery.keeper import NurseryKeeper
from garrison.supervisor.problems import Problems
from garrison.supervisor.reconciler import Reconciler
from garrison.supervisor.sampler import SAMPLE_SECONDS, Sampler
from garrison.supervisor.settings import (
    AggregateBudget,
    ConfigurationError,
    Settings,
    keep_fixed,
    load,
    needs_restart,
)
from garrison.supervisor.sinks.file import FileSink
from garrison.supervisor.state import CACHE_FILE, LOCAL_FILE, CachedState, LocalState, StateWriter, read
from garrison.supervisor.status import summary, worker_status
from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.stores.bridge import StoreBridge
from garrison.supervisor.stores.directory import DirectoryStore
from garrison.supervisor.stores.killfile import KillFileWatch
from garrison.supervisor.userspace import UserspaceCaps
from garrison.supervisor.version import VERSION
from garrison.supervisor.worker.launch import Place
from garrison.supervisor.worker.services import Services
from garrison.supervisor.worker.supervisor import WorkerSupervisor

PRELOAD = ("garrison.workers.runtime.process", "garrison.workers.process")
"""What the nursery loads ahead for its children to share."""
FIRST_SNAPSHOT_SECONDS = 5.0
"""How long a start waits for the store before it goes on with what is cached."""
READY_SECONDS = 10.0
DRAIN_SECONDS = 3.0
"""How long an orderly stop waits for the sink, and for the state files."""
CACHE_DELAY_SECONDS = 1.0
"""Changes within this time are cached with one write."""

_log = logs.get("agent")


class StartError(Exception):
    """The agent cannot start; `code` is the exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Agent:
    """One agent, for one run.

    Args:
        settings: The checked configuration.
        config_path: Where it came from, for HUP; None for the default file.
    """

    def __init__(self, settings: Settings, config_path: str | None) -> None:
        self.settings = settings
        self.host = settings.agent.hostname
        self.workers: dict[str, WorkerSupervisor] = {}
        self.problems = Problems()
        self._config_path = config_path
        self._started = time.monotonic()
        self._kill_lock = threading.Lock()
        self._kills = 0
        self._lifted = True
        self._aggregate: AggregateBudget = settings.agent.budget
        self._suspended = False
        self._retiring: set[asyncio.Task[None]] = set()
        self._epochs: dict[str, int] = {}
        self._release: asyncio.TimerHandle | None = None
        self._cache_timer: asyncio.TimerHandle | None = None

    # Start and stop

    def run(self) -> ExitCode:
        """Run until a signal ends it.

        Raises:
            StartError: It cannot start; nothing is left running.
        """
        log = self.settings.log
        logs.start(log.level, folder=self.settings.agent.log_dir if log.files else None, max_bytes=log.max_bytes)
        logs.capture_stdlib()
        try:
            with self._acquire_lock():
                self._open_cgroups()
                become_subreaper()
                return asyncio.run(self._main())
        except StartError as error:
            _log.critical("%s", error)
            raise
        finally:
            logs.stop()

    def _acquire_lock(self) -> InstanceLock:
        path = os.path.join(self.settings.agent.run_dir, "garrisond.lock")
        try:
            return InstanceLock.acquire(path)
        except AlreadyRunningError as error:
            raise StartError(ExitCode.ALREADY_RUNNING, str(error)) from error
        except LockError as error:
            raise StartError(ExitCode.OS_REFUSED, str(error)) from error

    def _open_cgroups(self) -> None:
        agent = self.settings.agent
        try:
            self.cgroups: Cgroups = open_cgroups(agent.cgroup_mode, agent.cgroup_root or None)
            if not self.cgroups.lock():
                raise StartError(
                    ExitCode.ALREADY_RUNNING,
                    f"another agent uses the cgroup {agent.cgroup_root or 'of this one'}; stop it first, or give this "
                    "one a node of its own (agent.cgroup_root)",
                )
            left = self.cgroups.prepare(self._aggregate_limits())
        except CgroupError as error:
            hint = "" if isinstance(error, UnsupportedError) else "; `garrison doctor` says what this host can do"
            raise StartError(ExitCode.OS_REFUSED, f"{error}{hint}") from error
        self._lifted = False
        if left.pids or left.nodes:
            _log.warning(
                "an earlier agent left %d processes and %d cgroups; they were killed and removed",
                len(left.pids),
                len(left.nodes),
            )

    async def _main(self) -> ExitCode:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._house = asyncio.Event()
        self._first_snapshot = asyncio.Event()
        self._build()
        try:
            await self._start()
            await self._stop.wait()
        finally:
            await self._shut_down()
        return ExitCode.OK

    def _build(self) -> None:
        settings, agent = self.settings, self.settings.agent
        local, local_error = read(agent.state_dir, LOCAL_FILE, LocalState)
        cached, cache_error = read(agent.state_dir, CACHE_FILE, CachedState)
        self.problems.set("local state", local_error)
        self.problems.set("cache", cache_error)
        for error in (local_error, cache_error):
            if error:
                _log.error("%s", error)
        self._local = local or LocalState()
        self._cached = cached or CachedState()
        self._epochs = dict(self._cached.epochs)
        self.notifier = Notifier()
        self.sampler = Sampler(self.cgroups)
        self.writer = StateWriter(agent.state_dir, self.host, self._trouble("state"))
        self.pipeline = Pipeline(
            FileSink(settings.sink.file.path, settings.sink.file.max_bytes), self.host, self._trouble("sink")
        )
        self._own = OwnEvents(self.host, self.pipeline.put, self.next_epoch("agent"))
        self.nursery = NurseryKeeper(self.host, self.cgroups.kill_plan, PRELOAD, self._kill_workers_node, self._warn)
        self.killswitch = KillSwitch(
            self.host,
            on_engage=self._kill_all,
            on_change=self._killswitch_news,
            state=self._local.killswitch,
            release_spread=agent.release_spread_seconds,
            prefix=agent.prefix,
        )
        self.store = DirectoryStore(
            settings.store.directory.path,
            agent.prefix,
            host=self.host,
            groups=agent.groups,
            kill_groups=kill_groups(self._local.killswitch, agent.prefix),
            seed=self._seed(),
        )
        self.killfile = KillFileWatch(agent.killswitch_file, self.killswitch.update_file, host=self.host)
        self.reconciler = Reconciler(
            settings,
            self.store,
            self._local.overrides,
            lambda: kill_groups(self.killswitch.state, agent.prefix),
            self._take_desired,
            lambda error: self.problems.set("store groups", error),
        )
        self.reconciler.restore(self._cached.snapshot, self._cached.memory)
        self.place = Place(
            cgroups=self.cgroups,
            lock=self._kill_lock,
            generation=lambda: self._kills,
            engaged=lambda: self.killswitch.engaged,
            restore=self._restore_aggregate,
        )
        self._services = Services(
            host=self.host,
            state_dir=agent.state_dir,
            grace=lambda: self.settings.agent.stop_grace_seconds,
            policy=Policy(),
            place=self.place,
            nursery=self.nursery.get,
            forward=self._forward,
            emit_state=self.emit_state,
            log=_worker_log,
            next_epoch=self.next_epoch,
            changed=self._changed,
            process_limits=self._process_limits,
        )
        self.control = ControlServer(os.path.join(agent.run_dir, "control.sock"), Operations(self))
        self._userspace = UserspaceCaps(self.cgroups) if not self.cgroups.enforced else None

    def _seed(self) -> Snapshot | None:
        """Return the cached snapshot, at least as new as the killswitch that was saved beside it.

        The two are written one after the other; revisions that ran backwards between them would make the first look
        at the store seem older than what is remembered.
        """
        snapshot = self._cached.snapshot
        if snapshot is None:
            return None
        causes = self._local.killswitch.store.values()
        known = [cause.revision for cause in causes if cause.history == snapshot.history]
        return msgspec.structs.replace(snapshot, revision=max([snapshot.revision, *known]))

    async def _start(self) -> None:
        _log.info(
            "garrisond %s starts on %s: pid %d, cgroup mode %s, configuration %s",
            VERSION,
            self.host,
            os.getpid(),
            self.cgroups.mode,
            self.settings.source or "built in",
        )
        for warning in self.settings.warnings:
            _log.warning("%s", warning)
        for signo, call in (
            (signal.SIGTERM, self._stop.set),
            (signal.SIGINT, self._stop.set),
            (signal.SIGHUP, self.reload),
            (signal.SIGUSR1, self._reopen),
            (signal.SIGCHLD, self.nursery.reap),
        ):
            self._loop.add_signal_handler(signo, call)
        self.writer.start()
        self.pipeline.start()
        # The file that forbids everything is looked at before anything could be started.
        self.killfile.start()
        self.store.start(StoreBridge(self))
        self._house_task = self._loop.create_task(self._keep_house(), name="house")
        self._tick_task = self._loop.create_task(self._tick(), name="tick")
        try:
            await self.control.start()
        except ControlSocketError as error:
            raise StartError(ExitCode.OS_REFUSED, str(error)) from error
        await self._wait_for_desired()
        await asyncio.gather(*(worker.settle(READY_SECONDS) for worker in self.workers.values()))
        self.emit_state("agent-started", {"version": VERSION, "cgroup_mode": self.cgroups.mode, "pid": os.getpid()})
        line = summary(self.workers, self.killswitch.engaged)
        self.notifier.ready(line)
        _log.info("ready: %s", line)

    async def _wait_for_desired(self) -> None:
        stopping = self._loop.create_task(self._stop.wait())
        snapshot = self._loop.create_task(self._first_snapshot.wait())
        await asyncio.wait((stopping, snapshot), timeout=FIRST_SNAPSHOT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, snapshot):
            task.cancel()
        if self.reconciler.desired is not None or self._stop.is_set():
            return
        status = self.store.status()
        if self.reconciler.snapshot is None:
            raise StartError(
                ExitCode.UNAVAILABLE,
                f"the store {status.endpoint} cannot be read and nothing is cached: {status.error or 'no answer'}",
            )
        age = max(0.0, time.time() - self._cached.saved_at)
        _log.warning(
            "the store %s cannot be read (%s): running on what was cached %.0f s ago",
            status.endpoint,
            status.error or "no answer",
            age,
        )
        self.reconciler.resolve()

    async def _shut_down(self) -> None:
        self.notifier.stopping("stopping the workers")
        _log.info("stopping")
        for task in ("_house_task", "_tick_task"):
            if hasattr(self, task):
                getattr(self, task).cancel()
        await asyncio.to_thread(self.store.stop, 1.0)
        await asyncio.to_thread(self.killfile.stop, 1.0)
        await asyncio.gather(*self._retiring, *(worker.close() for worker in self.workers.values()))
        await self.nursery.stop()
        await self.control.close()
        self.emit_state("agent-stopped", {"uptime_seconds": round(time.monotonic() - self._started, 1)})
        self.pipeline.resume()
        lost = await asyncio.to_thread(self.pipeline.close, DRAIN_SECONDS)
        if lost:
            _log.error("%d events could not be delivered before the end: %s", lost, self.pipeline.error)
        self._save_cache()
        self._save_local()
        await asyncio.to_thread(self.writer.close, DRAIN_SECONDS)
        try:
            self.cgroups.cleanup()
        except CgroupError as error:
            _log.error("%s", error)
        self.notifier.close()
        _log.info("stopped")

    # Desired state

    def take_store_status(self) -> None:
        """Note how the store is doing (from the loop)."""
        self.problems.set("store", self.store.status().error)

    def take_snapshot(self, snapshot: Snapshot) -> None:
        """Take a snapshot of the store (from the loop)."""
        self.reconciler.take_snapshot(snapshot)
        self._first_snapshot.set()

    def _take_desired(self, desired: Desired, changed: list[Change]) -> None:
        for change in changed:
            if change.accepted:
                _log.info("%s is now decided by %s", change.slot, change.key)
            else:
                _log.warning("refused: %s: %s", change.key, change.reason)
            self.emit_state(
                "desired-changed" if change.accepted else "desired-refused",
                {
                    "slot": change.slot,
                    "key": change.key,
                    "revision": change.revision,
                    "old_hash": change.old_hash,
                    "new_hash": change.new_hash,
                    "reason": change.reason,
                },
            )
        self.problems.replace("desired", [f"{problem.key}: {problem.reason}" for problem in desired.problems])
        self._apply_master(desired)
        for name, wanted in desired.workers.items():
            definition = self.settings.workers[name]
            worker = self.workers.get(name)
            logs.set_level(wanted.log_level, f"worker.{name}")
            if worker is None:
                taken = self._cached.taken.get(name)
                self.workers[name] = WorkerSupervisor(name, definition, wanted, self._services, taken)
            else:
                worker.want(wanted, definition)
        for name in self.workers.keys() - desired.workers.keys():
            self._retire(name)
        self._cache_soon()

    def _apply_master(self, desired: Desired) -> None:
        master = desired.master
        logs.set_level(master.log_level or self.settings.log.level)
        spread = master.release_spread
        self.killswitch.release_spread = self.settings.agent.release_spread_seconds if spread is None else spread
        if master.aggregate is not None and master.aggregate != self._aggregate:
            before, self._aggregate = self._aggregate, master.aggregate
            try:
                with self._kill_lock:
                    self.cgroups.limit_aggregate(self._aggregate_limits())
            except CgroupError as error:
                self._aggregate = before
                _log.error("the new budget of all workers is refused, the old one stays: %s", error)
                self.problems.set("aggregate", str(error))
            else:
                self.problems.set("aggregate", "")

    def _retire(self, name: str) -> None:
        worker = self.workers.pop(name)
        task = self._loop.create_task(worker.close(), name=f"retire {name}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def override(self, worker: str, override: Any) -> None:
        """Take a local decision, keep it on disk, and act on it."""
        self.reconciler.override(worker, override)
        self._save_local()

    def reload(self) -> None:
        """Read the configuration file again; one with errors changes nothing."""
        self.notifier.reloading()
        try:
            new = load(self._config_path)
        except ConfigurationError as error:
            _log.error("the configuration was not reloaded, the old one stays in force: %s", error)
            self.problems.set("configuration", f"not reloaded: {error}")
        else:
            for name in needs_restart(self.settings, new):
                _log.warning("%s has changed and takes effect at the next start only", name)
            self.settings = keep_fixed(self.settings, new)
            self.problems.set("configuration", "")
            self.reconciler.reload(self.settings)
            _log.info("the configuration was reloaded from %s", new.source or "the built-in defaults")
        self.notifier.ready(summary(self.workers, self.killswitch.engaged))

    def _reopen(self) -> None:
        logs.reopen()
        self.pipeline.reopen()

    # Killswitch

    def _kill_all(self) -> None:
        """Kill every worker, from whichever thread has learned of the killswitch; its flag is set already."""
        self._kill_workers_node(engaged=True)

    def _kill_workers_node(self, *, engaged: bool = False) -> None:
        with self._kill_lock:
            self._kills += engaged
            self._lifted = True
            try:
                self.cgroups.kill(None)
            except CgroupError as error:
                # Each worker's own task goes on killing its node; nothing starts meanwhile.
                _log.critical("not everything could be killed at once: %s", error)

    def _killswitch_news(self) -> None:
        self.call_in_loop(self._killswitch_changed)

    def _killswitch_changed(self) -> None:
        described = self.killswitch.describe()
        pending = self.killswitch.pending
        if self._release is not None:
            self._release.cancel()
            self._release = None
        if pending is not None:
            self._release = self._loop.call_later(pending.delay_seconds, self.confirm_release, pending.ticket)
            _log.notice("killswitch released; workers start in %.1f s", pending.delay_seconds)
        elif self.killswitch.engaged:
            _log.warning("killswitch engaged by %s: %s", ", ".join(described["scopes"]), described["reason"])  # type: ignore[arg-type]
        self.emit_state("killswitch-changed", {**described})
        self._save_local()
        self._poke_all()

    def confirm_release(self, ticket: int) -> bool:
        """Drop the killswitch's flag, if nothing has engaged it since; the workers start."""
        if not self.killswitch.confirm_release(ticket):
            return False
        self._poke_all()
        return True

    def _poke_all(self) -> None:
        self._house.set()
        for worker in self.workers.values():
            worker.poke()

    async def _keep_house(self) -> None:
        """End nursery and sink while the killswitch is engaged, and bring the sink back after it."""
        while True:
            await self._house.wait()
            self._house.clear()
            if self.killswitch.engaged and not self._suspended:
                await asyncio.gather(*(worker.settle(READY_SECONDS) for worker in self.workers.values()))
                if self.killswitch.engaged:
                    await self.nursery.stop()
                    self.pipeline.suspend()
                    self._suspended = True
            elif not self.killswitch.engaged and self._suspended:
                self.pipeline.resume()
                self._suspended = False
            self.notifier.status(summary(self.workers, self.killswitch.engaged))

    def _restore_aggregate(self) -> None:
        """Put the caps of all workers back after a kill has lifted them; the kill lock is held."""
        if self._lifted:
            self.cgroups.limit_aggregate(self._aggregate_limits())
            self._lifted = False

    def _aggregate_limits(self) -> Limits:
        budget = self._aggregate
        return Limits(cpu_quota_percent=budget.cpu_quota_percent, memory_max=budget.memory_max)

    # Small things

    def status(self) -> StatusReport:
        """Return the whole status document."""
        store = self.store.status()
        killswitch = self.killswitch.describe()
        now = self._loop.time()
        return StatusReport(
            host=self.host,
            agent=AgentStatus(
                pid=os.getpid(),
                version=VERSION,
                uptime_seconds=int(time.monotonic() - self._started),
                cgroup_mode=self.cgroups.mode,
                killswitch=KillswitchStatus(
                    engaged=bool(killswitch["engaged"]),
                    scopes=list(killswitch["scopes"]),  # type: ignore[call-overload]
                    reason=str(killswitch["reason"]),
                ),
                store=StoreStatus(
                    backend=store.backend,
                    connected=store.connected,
                    endpoint=store.endpoint,
                    revision=store.revision,
                    lease_id=store.lease_id,
                    stale_seconds=int(store.stale_seconds),
                ),
                problems=self.problems.texts(),
            ),
            workers=[
                worker_status(self.workers[name], self.cgroups, self.sampler, now) for name in sorted(self.workers)
            ],
        )

    def next_epoch(self, worker: str) -> int:
        """Return the number of a worker's next process: above every earlier one, also after lost state."""
        epoch = max(self._epochs.get(worker, 0) + 1, int(time.time()))
        self._epochs[worker] = epoch
        return epoch

    def emit_state(self, action: str, fields: dict[str, Any]) -> None:
        """Emit an event of the agent itself."""
        self._own.emit(action, fields)

    def _forward(self, worker: str, ledger: WorkerLedger, priority: Priority, count: int, data: bytes) -> None:
        self.pipeline.put(Batch(worker, ledger, priority, count, data, worker))

    def _process_limits(self, limits: Limits) -> tuple[tuple[tuple[int, int, int], ...], int]:
        if self.cgroups.enforced:
            return (), 0
        from garrison.supervisor.cgroups.unprivileged import nice, rlimits

        return tuple((which, soft, hard) for which, (soft, hard) in rlimits(limits).items()), nice(limits)

    def _changed(self) -> None:
        self.notifier.status(summary(self.workers, self.killswitch.engaged))
        self._cache_soon()

    def _cache_soon(self) -> None:
        if self._cache_timer is None:
            self._cache_timer = self._loop.call_later(CACHE_DELAY_SECONDS, self._save_cache)

    def _save_cache(self) -> None:
        if self._cache_timer is not None:
            self._cache_timer.cancel()
            self._cache_timer = None
        taken = {name: worker.configuration.taken for name, worker in self.workers.items()}
        self.writer.save(
            CACHE_FILE,
            CachedState(
                snapshot=self.reconciler.snapshot,
                memory=self.reconciler.memory,
                taken={name: offer for name, offer in taken.items() if offer is not None},
                epochs=dict(self._epochs),
                saved_at=time.time(),
            ),
        )

    def _save_local(self) -> None:
        self.writer.save(
            LOCAL_FILE,
            LocalState(killswitch=self.killswitch.state, overrides=dict(self.reconciler.overrides)),
        )

    def _trouble(self, what: str) -> Callable[[str], None]:
        def note(error: str) -> None:
            self.call_in_loop(lambda: self._note_trouble(what, error))

        return note

    def _note_trouble(self, what: str, error: str) -> None:
        self.problems.set(what, error)
        if error:
            _log.error("%s", error)
        else:
            _log.notice("%s: well again", what)

    def call_in_loop(self, call: Callable[[], None]) -> None:
        """Have something called from the loop; from any thread, also when the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop has ended: there is nobody left to tell.
            return

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)

    async def _tick(self) -> None:
        """Sample, and tell the service manager's watchdog that the loop turns."""
        interval = self.notifier.watchdog_interval()
        period = min(SAMPLE_SECONDS, interval or SAMPLE_SECONDS, 1.0 if self._userspace else SAMPLE_SECONDS)
        while True:
            await asyncio.sleep(period)
            self.notifier.watchdog()
            now = self._loop.time()
            living = {}
            for name, worker in self.workers.items():
                if worker.process is not None and worker.state in ALIVE:
                    living[name, worker.process.epoch] = self.sampler.sample(
                        name, worker.process.epoch, now, SAMPLE_SECONDS * 0.9
                    )
            self.sampler.keep(set(living))
            if self._userspace is not None:
                self._userspace.enforce(self.workers, now)


def _worker_log(level: LogLevel, source: str, text: str) -> None:
    logs.get(f"worker.{source}").log(level, "%s", text)
