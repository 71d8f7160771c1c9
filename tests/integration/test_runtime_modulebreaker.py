"""Several modules in one real process: the guilty one is stopped and comes back, its neighbours go on."""

from __future__ import annotations

import os
import signal

from garrison.ipc.messages import (
    EXIT_WITHOUT_MODULE,
    Applied,
    Beat,
    Control,
    Hold,
    ModuleBeat,
    Ready,
    Result,
    Stop,
    Task,
    holds_of,
    last_work_of,
)
from tests.integration._runtime_support import worker

BUDGET = {"cpu_trip_percent": 20.0, "cpu_quota_percent": 100.0, "cpu_trip_samples": 6, "sample_seconds": 0.2}


def module_of(beat: Beat, name: str) -> ModuleBeat:
    return next(module for module in beat.modules if module.name == name)


def until_module(w, name, accept, what):
    """Wait for a beat made from now on in which a module is as wanted; return the module's part."""
    return module_of(w.wait_for_next(Beat, lambda beat: accept(module_of(beat, name)), what), name)


def test_a_module_that_burns_cpu_time_is_stopped_and_its_neighbour_goes_on(tmp_path):
    with worker(tmp_path, {"hog": "Hog", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        hog = until_module(w, "hog", lambda module: module.state == "tripped", "the trip")
        assert (hog.cause, hog.trips, hog.level) == ("cpu", 1, 1)
        assert 0 < hog.retry_in_seconds <= 30
        w.until(lambda: "hog-down" in w.ledger.actions(), "its shutdown")
        ticks = w.ledger.actions().count("tick")
        w.until(lambda: w.ledger.actions().count("tick") > ticks + 20, "ticks of the neighbour")
        pulse = module_of(w.next_beat(), "pulse")
        assert (pulse.state, pulse.trips, pulse.degraded) == ("running", 0, False)
        used = module_of(w.next_beat(), "hog").cpu_seconds
        assert module_of(w.next_beat(), "hog").cpu_seconds == used
        lines = [line.message for line in w.logs()]
        assert any("module hog is asked to do less" in line for line in lines)
        assert any("module hog is stopped" in line and "its share is 10 %" in line for line in lines)


def test_a_module_that_behaves_again_passes_through_probation(tmp_path):
    with worker(tmp_path, {"hog": "Hog", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        first = until_module(w, "hog", lambda module: module.state == "tripped", "the trip")
        (w.state_dir / "behave").touch()
        again = until_module(w, "hog", lambda module: module.state == "running", "the start after the cool-down")
        assert again.probation
        assert (again.trips, again.level) == (1, 1)
        assert again.restarts == first.restarts + 1
        for _ in range(10):
            assert module_of(w.next_beat(), "hog").state == "running"
        assert w.ledger.actions().count("hog-up") == 2


def test_on_probation_a_module_is_stopped_sooner_and_for_longer(tmp_path):
    with worker(tmp_path, {"hog": "Hog", "pulse": "Pulse"}) as w:
        held = {"hog": Hold(phase="open", level=2, trips=5, cause="cpu", retry_in_seconds=0.5)}
        w.configure(held=held, **BUDGET)
        hog = until_module(w, "hog", lambda module: module.trips == 6, "the next trip")
        assert (hog.state, hog.level) == ("tripped", 3)
        assert 90 < hog.retry_in_seconds <= 120
        assert not any(module_of(beat, "hog").degraded for beat in w.of(Beat))


def test_a_module_that_does_not_return_has_the_worker_leave_and_start_without_it(tmp_path):
    modules = {"deaf": "DeafHog", "pulse": "Pulse"}
    with worker(tmp_path / "first", modules) as w:
        w.configure(**BUDGET)
        until_module(w, "deaf", lambda module: module.state == "tripped", "the trip")
        ticks = w.ledger.actions().count("tick")
        assert w.finish() == EXIT_WITHOUT_MODULE
        assert w.ledger.actions().count("tick") > ticks
        last = w.last_beat()
        assert any("does not return" in line.message for line in w.logs())
    held = holds_of(last, 1.0)
    assert set(held) == {"deaf"}
    assert (held["deaf"].phase, held["deaf"].level) == ("open", 1)
    with worker(tmp_path / "second", modules) as w:
        w.configure(held=held, **BUDGET)
        w.wait_for(Ready)
        assert w.wait_for(Applied).ok
        w.until(lambda: w.ledger.actions().count("tick") > 20, "ticks of the neighbour")
        deaf = module_of(w.next_beat(), "deaf")
        assert (deaf.state, deaf.trips) == ("tripped", 1)
        assert deaf.cpu_seconds < 1
        assert "hog-up" not in w.ledger.actions()


def test_a_module_that_holds_the_interpreters_lock_is_found_and_left_out(tmp_path):
    modules = {"holder": "Holder", "pulse": "Pulse"}
    with worker(tmp_path / "first", modules) as w:
        w.configure(**{**BUDGET, "beat_seconds": 0.2})
        w.finish()
        assert w.process.returncode == -signal.SIGPROF
    state_dir = str(tmp_path / "first" / "state")
    with worker(tmp_path / "second", modules, state_dir=state_dir) as w:
        w.configure(**BUDGET)
        w.until(lambda: w.ledger.actions().count("tick") > 20, "ticks of the neighbour")
        holder = module_of(w.next_beat(), "holder")
        assert (holder.state, holder.cause, holder.trips) == ("tripped", "hang", 1)
        assert any(
            "held the interpreter's lock at" in line.message and "modules.py" in line.message for line in w.logs()
        )
    with worker(tmp_path / "third", modules, state_dir=state_dir) as w:
        (tmp_path / "first" / "state" / "behave").touch()
        w.configure(**BUDGET)
        w.wait_for(Ready)
        assert module_of(w.next_beat(), "holder").state == "running"
        w.send(Stop("the test ends"))
        assert w.finish() == os.EX_OK


def test_a_frozen_process_is_not_taken_for_a_stalled_one(tmp_path):
    with worker(tmp_path, {"quiet": "Quiet", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        w.wait_for(Ready)
        w.process.send_signal(signal.SIGSTOP)
        w.read(4.0)
        w.process.send_signal(signal.SIGCONT)
        assert all(module.trips == 0 for module in w.next_beat().modules)
        w.send(Stop("the test ends"))
        assert w.finish() == os.EX_OK


def test_a_reset_brings_a_stopped_module_back_at_once_and_with_a_clean_slate(tmp_path):
    with worker(tmp_path, {"hog": "Hog", "pulse": "Pulse"}) as w:
        held = {"hog": Hold(phase="latched", level=5, trips=5, cause="cpu")}
        (w.state_dir / "behave").touch()
        w.configure(held=held, **BUDGET)
        latched = until_module(w, "hog", lambda module: module.state == "latched", "the latched module")
        assert latched.retry_in_seconds is None
        w.send(Control("reset"))
        hog = until_module(w, "hog", lambda module: module.state == "running", "its start")
        assert (hog.level, hog.trips, hog.probation) == (0, 5, False)


def test_changed_settings_of_a_stopped_module_bring_it_back_and_those_of_its_neighbour_do_not(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter", "pulse": "Pulse", "other": "Greeter"}) as w:
        held = {"greeter": Hold(phase="latched", level=5, trips=5, cause="cpu")}
        w.configure({}, held=held, **BUDGET)
        assert w.wait_for(Applied).ok
        number = w.configure({"other": {"greeting": "neighbour"}}, held=held, **BUDGET)
        assert w.wait_for(Applied, lambda applied: applied.revision == number).ok
        assert module_of(w.next_beat(), "greeter").state == "latched"
        number = w.configure({"other": {"greeting": "neighbour"}, "greeter": {"greeting": "new"}}, **BUDGET)
        assert w.wait_for(Applied, lambda applied: applied.revision == number).ok
        until_module(w, "greeter", lambda module: module.state == "running", "its start")
        w.until(lambda: any(d.get("message") == "new" for d in w.ledger.documents), "its new settings")


def test_a_task_for_a_stopped_module_is_refused(tmp_path):
    with worker(tmp_path, {"worker": "Worker", "pulse": "Pulse"}) as w:
        w.configure(held={"worker": Hold(phase="open", level=1, retry_in_seconds=600.0)}, **BUDGET)
        w.wait_for(Ready)
        answer = w.ask("echo", module="worker", a=1)
        assert not answer.ok
        assert "stopped by its breaker" in answer.error


def test_two_hogs_are_stopped_one_after_the_other_and_the_third_module_goes_on(tmp_path):
    with worker(tmp_path, {"one": "Hog", "two": "Hog", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        both = w.wait_for_next(
            Beat, lambda beat: all(module_of(beat, name).state == "tripped" for name in ("one", "two")), "both trips"
        )
        assert module_of(both, "pulse").state == "running"
        stopped = [line.message.split()[1] for line in w.logs() if "is stopped" in line.message]
        assert sorted(stopped) == ["one", "two"]


def test_a_worker_with_one_module_leaves_the_judgement_to_the_master(tmp_path):
    with worker(tmp_path, {"hog": "Hog"}) as w:
        w.configure(held={"hog": Hold(phase="latched", level=5)}, **BUDGET)
        w.wait_for(Ready)
        for _ in range(15):
            hog = module_of(w.next_beat(), "hog")
        assert (hog.state, hog.trips) == ("running", 0)
        assert last_work_of(w.last_beat())[0] == "hog"


def test_paced_work_is_never_stopped_and_its_name_is_in_the_beat(tmp_path):
    with worker(tmp_path, {"scanner": "Scanner", "pulse": "Pulse"}) as w:
        (w.state_dir / "scan").touch()
        w.configure(**BUDGET)
        w.wait_for_next(Beat, lambda beat: last_work_of(beat) == ("scanner", "all of it"), "a beat that names the work")
        for _ in range(30):
            scanner = module_of(w.next_beat(), "scanner")
            assert (scanner.state, scanner.trips, scanner.degraded) == ("running", 0, False)


def test_a_task_may_use_more_while_its_allowance_lasts(tmp_path):
    with worker(tmp_path, {"scanner": "Scanner", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        w.wait_for(Ready)
        w.send(
            Task(
                id="long",
                task="scan",
                module="scanner",
                arguments={"seconds": 4.0},
                allowance_percent=500.0,
                allowance_seconds=600.0,
            )
        )
        during = until_module(w, "scanner", lambda module: module.allowance_percent > 0, "the allowance")
        assert (during.allowance_percent, during.last_task) == (100.0, "scan")
        result = w.wait_for(Result, lambda result: result.id == "long")
        assert result.ok, result.error
        assert result.value["allowed"] == 80.0
        usual = w.ask("scan", "scanner", seconds=2.0)
        assert usual.value["allowed"] == 8.0
        assert module_of(w.next_beat(), "scanner").allowance_percent == 0
        assert module_of(w.next_beat(), "scanner").trips == 0


def test_degrade_is_heard_by_all_modules_and_is_in_the_beat(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter", "pulse": "Pulse"}) as w:
        w.configure(**BUDGET)
        w.wait_for(Ready)
        w.send(Control("degrade"))
        beat = w.wait_for_next(Beat, lambda beat: beat.degraded, "a degraded beat")
        assert all(module.degraded for module in beat.modules)
        assert w.ask("config", module="greeter").value["degraded"] is True
        w.send(Control("normal"))
        beat = w.wait_for_next(Beat, lambda beat: not beat.degraded, "a normal beat")
        assert not any(module.degraded for module in beat.modules)


def test_with_dry_run_nobody_is_stopped_and_it_is_told_whom_it_would_have_been(tmp_path):
    with worker(tmp_path, {"hog": "Hog", "pulse": "Pulse"}) as w:
        w.configure(dry_run=True, **BUDGET)
        hog = until_module(w, "hog", lambda module: module.would_trips >= 2, "two breaches that are only told")
        assert (hog.state, hog.trips, hog.degraded) == ("running", 0, False)
        assert module_of(w.last_beat(), "pulse").would_trips == 0
        lines = [line.message for line in w.logs()]
        assert any(line.startswith("dry_run: module hog would be stopped") for line in lines)
        assert any(line.startswith("dry_run: module hog would be asked to do less") for line in lines)
        w.configure(**BUDGET)
        until_module(w, "hog", lambda module: module.state == "tripped", "the trip once it counts")
