"""The agent: puts the parts together, starts them in order, keeps them in step, and stops them in order.

One asyncio loop decides. Threads only bring news (store, killswitch file) or carry things away (sink, log,
state files); the single thing that a thread does by itself is to kill, when the killswitch is engaged.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from garrison.ipc.messages import LogLevel
from garrison.supervisor import logs
from garrison.supervisor.breaker import Policy
from garrison.supervisor.cgroups.base import Limits
from garrison.supervisor.cgroups.errors import CgroupError
from garrison.supervisor.control.endpoint import ControlSocketError
from garrison.supervisor.control.operations import Operations
from garrison.supervisor.control.server import ControlServer
from garrison.supervisor.control.status import AgentStatus, StatusReport
from garrison.supervisor.desired import Change, Desired, WorkerDesired
from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.heartbeat.wiring import make_heart
from garrison.supervisor.hostwatch.watchman import Surroundings, Watchman
from garrison.supervisor.killswitch import KillSwitch, kill_groups
from garrison.supervisor.linux import become_subreaper
from garrison.supervisor.looking import Looker
from garrison.supervisor.notify import Notifier
from garrison.supervisor.nursery.keeper import NurseryKeeper
from garrison.supervisor.presence.choose import make_presence
from garrison.supervisor.problems import Problems
from garrison.supervisor.reconciler import Reconciler
from garrison.supervisor.refused import refused_upgrade
from garrison.supervisor.remembering import Remembering
from garrison.supervisor.roster import Roster
from garrison.supervisor.sampler import Sampler
from garrison.supervisor.settings import (
    ConfigurationError,
    Settings,
    keep_fixed,
    load,
    needs_restart,
)
from garrison.supervisor.settings import Worker as Definition
from garrison.supervisor.startup import StartError, acquire_lock, lower_rights, prepare_cgroups, raise_nofile
from garrison.supervisor.status import killswitch_status, store_status, summary, worker_statuses
from garrison.supervisor.stores.base import Snapshot
from garrison.supervisor.stores.bridge import StoreBridge
from garrison.supervisor.stores.choose import make_store
from garrison.supervisor.stores.killfile import KillFileWatch
from garrison.supervisor.userspace import UserspaceCaps
from garrison.supervisor.version import VERSION
from garrison.supervisor.wayout import WayOut
from garrison.supervisor.worker.aggregate import WorkersNode
from garrison.supervisor.worker.services import ProcessLimits, Services
from garrison.supervisor.worker.supervisor import WorkerSupervisor

if TYPE_CHECKING:
    from garrison.supervisor.metrics.service import MetricsService

PRELOAD = (
    *("garrison.workers.runtime.process", "garrison.workers.process", "garrison.workers.files"),
    "encodings.ascii",
)
"""What the nursery loads ahead for its children to share."""
FIRST_SNAPSHOT_SECONDS = 5.0
"""How long a start waits for the store before it goes on with what is cached."""
READY_SECONDS = 10.0
LEAVE_SECONDS = 1.0
"""How long an orderly stop tries to take the host out of etcd; after that its lease does."""
DRAIN_SECONDS = 3.0
"""How long an orderly stop waits for the sink, and for the state files."""
TICK_SECONDS = 5.0
CLOSE_SECONDS = 15.0
"""How long, beyond its grace, a worker's end may take in an orderly stop: kill, reaping, removal of its node."""

T = TypeVar("T")

_log = logs.get("agent")


class Agent:
    """One agent, for one run.

    Args:
        settings: The checked configuration.
        config_path: Where it came from, for HUP; None for the default file.
    """

    def __init__(self, settings: Settings, config_path: str | None) -> None:
        self.settings = settings
        self.host = settings.agent.hostname
        self.roster = Roster(self._make_worker, self._worker_retired)
        self.workers = self.roster.workers
        self.problems = Problems()
        self._config_path = config_path
        self._started = time.monotonic()
        self._ready = False
        self._suspended = False
        self._stopping = False
        self._remembering = False
        self._release: asyncio.TimerHandle | None = None

    # Start and stop

    def run(self) -> ExitCode:
        """Run until a signal ends it.

        Raises:
            StartError: It cannot start; nothing is left running.
        """
        # Ahead of the first thread, which the log has.
        lower_rights()
        log = self.settings.log
        logs.start(log.level, folder=self._log_folder(), max_bytes=log.max_bytes)
        logs.capture_stdlib()
        try:
            raise_nofile()
            with acquire_lock(self.settings):
                self.cgroups = prepare_cgroups(self.settings)
                become_subreaper()
                return asyncio.run(self._main())
        except StartError as error:
            _log.critical("%s", error)
            raise
        finally:
            logs.stop()

    async def _main(self) -> ExitCode:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._house = asyncio.Event()
        self._first_snapshot = asyncio.Event()
        try:
            self._build()
        except OSError as error:
            raise StartError(ExitCode.OS_REFUSED, f"a part of the agent cannot be made: {error}") from error
        try:
            await self._start()
            await self._stop.wait()
        finally:
            await self._shut_down()
        return ExitCode.OK

    def _build(self) -> None:
        settings, agent = self.settings, self.settings.agent
        policy = Policy()
        remembered = self.remembering = Remembering(agent.state_dir, self.host, self._trouble("state"), policy)
        for what, error in remembered.errors.items():
            self.problems.set(what, error)
            if error:
                _log.error("%s", error)
        self.problems.set("upgrade", refused_upgrade())
        self.notifier = Notifier()
        userspace = UserspaceCaps(self.cgroups) if not self.cgroups.enforced else None
        paused = None if userspace is None else userspace.throttling
        self.sampler = Sampler(self.cgroups, paused)
        self.way_out = WayOut(settings, remembered, self._trouble, self.call_in_loop, self._loop.time)
        pipeline = self.way_out.pipeline
        self.node = WorkersNode(self.cgroups, agent.budget, lambda text: _log.critical("%s", text))
        self.nursery = NurseryKeeper(self.host, self.cgroups.kill_plan, PRELOAD, self.node.kill, self._warn)
        self.killswitch = KillSwitch(
            self.host,
            on_engage=self.node.engage,
            on_change=self._killswitch_news,
            state=remembered.local.killswitch,
            release_spread=agent.release_spread_seconds,
            prefix=agent.prefix,
        )
        self.store = make_store(
            settings,
            kill_groups(remembered.local.killswitch, agent.prefix),
            remembered.seed(),
            remembered.age(),
        )
        self.presence = make_presence(self, self.store)
        self.killfile = KillFileWatch(agent.killswitch_file, self.killswitch.update_file, host=self.host)
        self.reconciler = Reconciler(
            settings,
            self.store,
            remembered.local.overrides,
            lambda: kill_groups(self.killswitch.state, agent.prefix),
            self._take_desired,
            lambda error: self.problems.set("store groups", error),
        )
        self.reconciler.restore(remembered.cached.snapshot, remembered.cached.memory)
        self.place = self.node.place(lambda: self.killswitch.engaged)
        self._services = Services(
            host=self.host,
            state_dir=agent.state_dir,
            grace=lambda: self.settings.agent.stop_grace_seconds,
            policy=policy,
            place=self.place,
            nursery=self.nursery.get,
            ledger=self.way_out.books.of,
            forward=pipeline.put,
            congested=pipeline.congested,
            emit_state=self.emit_state,
            log=_worker_log,
            next_epoch=remembered.next_epoch,
            changed=self._changed,
            process_limits=self._process_limits,
            sampler=self.sampler,
            remember=self._remember_soon,
            dry_run=lambda: self.settings.agent.dry_run,
            acks=pipeline.always,
        )
        self.control = ControlServer(os.path.join(agent.run_dir, "control.sock"), Operations(self))
        enforce = None if userspace is None else lambda now: userspace.enforce(self.workers, now)
        self.looker = Looker(self.workers, self.sampler, enforce=enforce)
        self.watchman = Watchman(
            Surroundings(
                host=self.host,
                cgroups=self.cgroups,
                pipeline=pipeline,
                problems=self.problems,
                emit_state=self.emit_state,
                settings=lambda: self.settings,
                budget=lambda: self.node.budget,
                workers=lambda: self.workers,
                paused=paused,
            )
        )
        self.metrics: MetricsService | None = None
        self.heart = make_heart(self, self._started)

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
        try:
            self.remembering.writer.start()
            self.way_out.pipeline.start()
            # The file that forbids everything is looked at before anything could be started.
            self.killfile.start()
            if self.presence is not None:
                self.presence.start()
            self.store.start(StoreBridge(self))
        except (OSError, RuntimeError) as error:
            raise StartError(
                ExitCode.OS_REFUSED,
                f"a part of the agent cannot be started: {error}; is a limit too low (nofile, tasks)?",
            ) from error
        self._house_task = self._loop.create_task(self._keep_house(), name="house")
        self._tick_task = self._loop.create_task(self._tick(), name="tick")
        self._look_task = self._loop.create_task(self.looker.run(), name="look")
        self._watch_task = self._loop.create_task(self.watchman.run(), name="watchman")
        self._heart_task = self._loop.create_task(self.heart.run(), name="heart")
        try:
            await self.control.start()
        except ControlSocketError as error:
            raise StartError(ExitCode.OS_REFUSED, str(error)) from error
        self._take_output_settings()
        await self._wait_for_desired()
        await self._until_stop(self.roster.settle(), READY_SECONDS)
        if self._stop.is_set():
            return
        self.emit_state("agent-started", {"version": VERSION, "cgroup_mode": self.cgroups.mode, "pid": os.getpid()})
        if lost := self.way_out.lost:
            _log.warning("lost with the end of the last master: %s", lost)
            self.emit_state("events-lost", {"events": sum(lost.values()), "by_worker": lost})
        line = summary(self.workers, self.killswitch.engaged)
        self._ready = True
        self._present()
        self.notifier.ready(line)
        _log.info("ready: %s", line)

    async def _until_stop(self, awaited: Coroutine[Any, Any, object], seconds: float) -> None:
        """Wait for something, but not for longer than `seconds`, and not when the agent is to stop."""
        tasks = (self._loop.create_task(self._stop.wait()), self._loop.create_task(awaited))
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _wait_for_desired(self) -> None:
        await self._until_stop(self._first_snapshot.wait(), FIRST_SNAPSHOT_SECONDS)
        if self.reconciler.desired is not None or self._stop.is_set():
            return
        status = self.store.status()
        if self.reconciler.snapshot is None:
            raise StartError(
                ExitCode.UNAVAILABLE,
                f"the store {status.endpoint} cannot be read and nothing is cached: {status.error or 'no answer'}",
            )
        age = self.remembering.age()
        _log.warning(
            "the store %s cannot be read (%s): running on what was cached %.0f s ago",
            status.endpoint,
            status.error or "no answer",
            age,
        )
        self.reconciler.resolve()

    async def _shut_down(self) -> None:
        self._stopping = True
        self.notifier.stopping("stopping the workers")
        _log.info("stopping")
        for task in ("_house_task", "_tick_task", "_look_task", "_watch_task", "_heart_task"):
            if hasattr(self, task):
                getattr(self, task).cancel()
        if self.presence is not None:
            # First: whoever looks at the fleet should see at once that this was no accident.
            await _in_thread(self.presence.stop, LEAVE_SECONDS)
        await _in_thread(self.store.stop, 1.0)
        await _in_thread(self.killfile.stop, 1.0)
        self.nursery.interrupt()
        await self.roster.close(self.settings.agent.stop_grace_seconds + CLOSE_SECONDS, self.node.kill)
        await self.nursery.close()
        await self.control.close()
        if self.metrics is not None:
            await self.metrics.close(DRAIN_SECONDS)
        logs.listen(None)
        self.emit_state("agent-stopped", {"uptime_seconds": round(time.monotonic() - self._started, 1)})
        self.way_out.pipeline.resume()
        lost = await _in_thread(self.way_out.pipeline.close, DRAIN_SECONDS)
        if lost:
            _log.error("%d events could not be delivered before the end: %s", lost, self.way_out.pipeline.error)
        self._save_cache()
        self._save_local()
        self._save_breakers()
        self.remembering.save_history()
        self.way_out.books.close()
        self.remembering.save_counts(self.way_out.books.state(clean=True))
        await _in_thread(self.remembering.writer.close, DRAIN_SECONDS)
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
        if self._stopping:
            return
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
        self._choose_sink(desired)
        self.roster.want(desired.workers, self.settings.workers)
        self._cache_soon()
        self._present()

    def _apply_master(self, desired: Desired) -> None:
        master = desired.master
        logs.set_level(master.log_level or self.settings.log.level)
        spread = master.release_spread
        self.killswitch.release_spread = self.settings.agent.release_spread_seconds if spread is None else spread
        if master.aggregate is not None and master.aggregate != self.node.budget:
            try:
                self.node.limit(master.aggregate)
            except CgroupError as error:
                _log.error("the new budget of all workers is refused, the old one stays: %s", error)
                self.problems.set("aggregate", str(error))
            else:
                self.problems.set("aggregate", "")

    def _choose_sink(self, desired: Desired) -> None:
        changed, problems = self.way_out.direct(self.settings, desired)
        self.problems.replace("sink keys", problems)
        if changed is not None:
            self.emit_state("sink-changed", changed)

    def _make_worker(self, name: str, definition: Definition, wanted: WorkerDesired) -> WorkerSupervisor:
        taken = self.remembering.cached.taken.get(name)
        return WorkerSupervisor(name, definition, wanted, self._services, taken, self.remembering.breakers.of(name))

    def _worker_retired(self, name: str) -> None:
        self.way_out.books.retire(name)
        if not self._stopping:
            self.reconciler.resolve()

    def override(self, worker: str, override: Any) -> None:
        """Take a local decision, keep it on disk, and act on it."""
        self.reconciler.override(worker, override)
        self._save_local()

    def reload(self) -> None:
        """Read the configuration file again; one with errors changes nothing."""
        if self._stopping:
            return
        self.notifier.reloading()
        try:
            self._reload()
        finally:
            # Whatever came of it: a service manager that waits for the end of a reload takes us for hung. Before the
            # first READY=1 this would claim more than is true.
            if self._ready:
                self.notifier.ready(summary(self.workers, self.killswitch.engaged))

    def _reload(self) -> None:
        self.problems.set("upgrade", refused_upgrade())
        try:
            new = load(self._config_path)
        except ConfigurationError as error:
            _log.error("the configuration was not reloaded, the old one stays in force: %s", error)
            self.problems.set("configuration", f"not reloaded: {error}")
        else:
            for name in needs_restart(self.settings, new):
                _log.warning("%s has changed and takes effect at the next start only", name)
            before, self.settings = self.settings, keep_fixed(self.settings, new)
            self.problems.set("configuration", "")
            if (before.log.files, before.log.max_bytes) != (self.settings.log.files, self.settings.log.max_bytes):
                logs.set_files(self._log_folder(), self.settings.log.max_bytes)
            self._take_output_settings()
            self.reconciler.reload(self.settings)
            _log.info("the configuration was reloaded from %s", new.source or "the built-in defaults")

    def _log_folder(self) -> str | None:
        return self.settings.agent.log_dir if self.settings.log.files else None

    def _take_output_settings(self) -> None:
        """Have metrics and log events as the settings want them."""
        metrics = self.settings.metrics
        if self.metrics is None and (metrics.listen or metrics.textfile):
            from garrison.supervisor.metrics.wiring import make_metrics

            self.metrics = make_metrics(self, self._started)
            self.metrics.start()
        if self.metrics is not None:
            self.metrics.apply(metrics)
        self.way_out.listen(self.settings)

    def _reopen(self) -> None:
        logs.reopen()
        self.way_out.pipeline.reopen()

    # Killswitch

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
        self._present()
        self._save_local()
        self._poke_all()

    def confirm_release(self, ticket: int) -> bool:
        """Drop the killswitch's flag, if nothing has engaged it since; the workers start."""
        if not self.killswitch.confirm_release(ticket):
            return False
        self._present()
        self._poke_all()
        return True

    def _poke_all(self) -> None:
        self._house.set()
        if self.killswitch.engaged:
            self.nursery.interrupt()
        self.roster.poke()

    async def _keep_house(self) -> None:
        """End nursery and sink while the killswitch is engaged, and bring the sink back after it."""
        while True:
            await self._house.wait()
            self._house.clear()
            try:
                await self._tidy()
            except Exception:  # noqa: BLE001  without this task the sink would stay closed for ever
                _log.exception("housekeeping failed, trying again in 1 s")
                self._loop.call_later(1.0, self._house.set)

    async def _tidy(self) -> None:
        if self.killswitch.engaged and not self._suspended:
            await self.roster.settle()
            if self.killswitch.engaged:
                await self.nursery.stop()
                self.way_out.pipeline.suspend()
                self._suspended = True
        elif not self.killswitch.engaged and self._suspended:
            self.way_out.pipeline.resume()
            self._suspended = False
        self.notifier.status(summary(self.workers, self.killswitch.engaged))

    # Small things

    def status(self) -> StatusReport:
        """Return the whole status document."""
        return StatusReport(
            host=self.host,
            agent=AgentStatus(
                pid=os.getpid(),
                version=VERSION,
                uptime_seconds=int(time.monotonic() - self._started),
                cgroup_mode=self.cgroups.mode,
                killswitch=killswitch_status(self.killswitch),
                store=store_status(self.store.status(), self.presence.lease_id if self.presence is not None else ""),
                problems=self.problems.texts(),
            ),
            workers=worker_statuses(self.workers, self.cgroups, self.sampler, self._loop.time()),
        )

    def emit_state(self, action: str, fields: dict[str, Any]) -> None:
        """Emit an event of the agent itself, and keep it in the history."""
        self.way_out.own.emit(action, fields)
        self.remembering.happened(action, fields)

    def _process_limits(self, limits: Limits) -> ProcessLimits:
        if self.cgroups.enforced:
            return ProcessLimits()
        from garrison.supervisor.cgroups.unprivileged import nice, rlimits

        wanted = tuple((which, soft, hard) for which, (soft, hard) in rlimits(limits).items())
        return ProcessLimits(wanted, nice(limits), subreaper=True)

    def _changed(self) -> None:
        self.notifier.status(summary(self.workers, self.killswitch.engaged))
        self._present()
        self._cache_soon()

    def _cache_soon(self) -> None:
        self.remembering.cache_soon(self._save_cache)

    def _save_cache(self) -> None:
        self.remembering.save_cache(
            self.reconciler.snapshot,
            self.reconciler.memory,
            self.settings.workers,
            {name: worker.configuration.taken for name, worker in self.workers.items()},
        )

    def _remember_soon(self) -> None:
        """Have the breakers written in this turn of the loop, once for all that changes in it."""
        if not self._remembering:
            self._remembering = True
            self._loop.call_soon(self._save_breakers)

    def _save_breakers(self) -> None:
        self._remembering = False
        records = {name: worker.guard.record for name, worker in self.workers.items()}
        self.remembering.save_breakers(records, self.settings.workers)

    def _save_local(self) -> None:
        self.remembering.save_local(self.killswitch.state, self.reconciler.overrides)

    def _trouble(self, what: str) -> Callable[[str], None]:
        def note(error: str) -> None:
            self.call_in_loop(lambda: self._note_trouble(what, error))

        return note

    def _note_trouble(self, what: str, error: str) -> None:
        self.problems.set(what, error)
        # A source of its own: what tells of the way out never goes there as an event.
        log = logs.get(f"agent.{what}")
        if error:
            log.error("%s", error)
        else:
            log.notice("%s: well again", what)

    def call_in_loop(self, call: Callable[[], None]) -> None:
        """Have something called from the loop; from any thread, also when the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:
            # The loop has ended: there is nobody left to tell.
            return

    def _present(self) -> None:
        """Have what others see of this host looked at; what it says before the first READY=1 is not worth a write."""
        if self.presence is not None and self._ready:
            self.presence.offer_soon()

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)

    async def _tick(self) -> None:
        """Tell the service manager's watchdog that the loop turns."""
        interval = self.notifier.watchdog_interval()
        period = min(TICK_SECONDS, interval or TICK_SECONDS)
        while True:
            await asyncio.sleep(period)
            self.notifier.watchdog()
            self._present()


def _worker_log(level: LogLevel, source: str, text: str) -> None:
    logs.get(f"worker.{source}").log(level, "%s", text)


async def _in_thread(call: Callable[[float], T], seconds: float) -> T:
    """Have something that waits up to `seconds` done beside the loop; in it where there is no thread to be had."""
    try:
        return await asyncio.to_thread(call, seconds)
    except RuntimeError:
        _log.warning("no thread can be started (is the limit of tasks reached?): the loop waits instead")
        return call(seconds)
