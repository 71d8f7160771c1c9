"""A worker process on real pipes: start, events, configuration, failures, tasks and every way to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from garrison.ipc.frames import HEADER
from garrison.ipc.messages import Applied, Beat, Control, Events, Log, Ready, Result, Stop, Task
from garrison.workers.runtime.catcher import STACK_BYTES
from tests.integration._runtime_support import worker


def applied(process, revision):
    return process.wait_for(Applied, lambda message: message.revision == revision)


# Start and beat


def test_modules_start_with_the_first_configuration_and_ready_comes_before_applied(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        first = w.wait_for(Beat)
        assert first.modules[0].state == "starting"
        assert not w.of(Ready)
        w.configure({"greeting": "hi"})
        assert applied(w, 1).ok
        ready = w.of(Ready)[0]
        assert ready.modules == ["greeter"]
        assert ready.pid == w.process.pid
        assert w.messages.index(ready) < w.messages.index(w.of(Applied)[0])
        w.until(lambda: w.ledger.documents, "the first state")
        document = w.ledger.documents[0]
        assert document["message"] == "hi"
        assert document["event"] == {
            "module": "w",
            "kind": "state",
            "action": "started",
            "sequence": 1,
        }
        assert document["@timestamp"].endswith("Z")


def test_beats_follow_the_configured_interval_and_carry_the_modules(tmp_path):
    with worker(tmp_path, {"pulse": "Pulse"}, beat_seconds=30.0) as w:
        w.configure(beat_seconds=0.1)
        w.until(lambda: w.ledger.actions().count("tick") >= 5, "five ticks")
        beat = w.next_beat()
        assert beat.modules[0].name == "pulse"
        assert beat.modules[0].state == "running"
        assert beat.modules[0].cpu_seconds > 0
        assert beat.emitted["event"] >= 5


def test_an_idle_worker_wakes_for_its_beat_only(tmp_path):
    with worker(tmp_path, {"quiet": "Quiet"}, beat_seconds=3600.0) as w:
        w.configure()
        assert applied(w, 1).ok
        status = f"/proc/{w.process.pid}/task"

        def switches() -> int:
            total = 0
            for task in os.listdir(status):
                with open(f"{status}/{task}/status") as file:
                    total += sum(int(line.split()[1]) for line in file if line.startswith("voluntary"))
            return total

        # What still settles right after the start ends; then nothing moves for a second.
        deadline = time.monotonic() + 30
        while True:
            before = switches()
            w.read(1.0)
            if switches() == before:
                break
            assert time.monotonic() < deadline


def test_importing_the_runtime_brings_nothing_heavy():
    code = """
import sys
before = set(sys.modules)
import garrison.workers.runtime.process
print(*(set(sys.modules) - before))
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"asyncio", "logging", "subprocess", "grpc", "kafka", "etcd3", "json", "traceback", "difflib", "hashlib"}
    assert not heavy & {name.partition(".")[0] for name in loaded}
    assert "garrison.workers.runtime.process" in loaded


def test_deep_recursion_in_a_module_is_an_error_and_not_a_crash_of_the_process():
    # The deepest use of the C stack that was found: recursion through sorted().
    code = f"""
import threading
threading.stack_size({STACK_BYTES})
def work():
    def key(_):
        return sorted([1, 2], key=key)
    try:
        key(1)
    except RecursionError:
        print("caught")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "caught")


# Events


def test_a_pipe_that_nobody_reads_costs_bounded_memory_and_every_number_is_accounted_for(tmp_path):
    limit = 256 * 1024
    with worker(tmp_path, {"flood": "Flood"}, queue_bytes=limit) as w:
        w.configure({"total": 200_000, "every_alert": 10_000})
        # Nothing is read until the burst is over: the process sleeps again.
        deadline = time.monotonic() + 60
        ticks, still = -1, 0
        while still < 3:
            assert time.monotonic() < deadline
            time.sleep(0.3)
            with open(f"/proc/{w.process.pid}/stat") as file:
                now = sum(map(int, file.read().rpartition(")")[2].split()[11:13]))
            still = still + 1 if now == ticks and now > 20 else 0
            ticks = now
        result = w.ask("result").value
        w.send(Stop())
        assert w.finish() == 0
        beat = w.last_beat()
        assert beat.emitted == {"alert": 20, "event": 199_980}
        assert w.ledger.numbered() == beat.emitted
        assert w.ledger.delivered["alert"] == 20
        assert beat.dropped == w.ledger.dropped
        assert set(beat.dropped) == {"queue_full"}
        assert sum(w.ledger.delivered.values()) + sum(w.ledger.dropped.values()) == 200_000
        assert result["peak"] <= limit
        assert result["taken"] >= sum(w.ledger.delivered.values())


def test_a_reader_that_keeps_up_gets_every_event(tmp_path):
    with worker(tmp_path, {"flood": "Flood"}, queue_bytes=64 * 1024 * 1024) as w:
        w.configure({"total": 20_000, "padding": 300})
        w.until(lambda: w.ledger.delivered.get("event", 0) == 20_000, "all events")
        assert w.ledger.dropped == {}


def test_events_that_are_hard_to_encode_are_mended_or_dropped_with_a_reason(tmp_path):
    with worker(tmp_path, {"oddities": "Oddities"}) as w:
        w.configure()
        assert w.ask("go").value == {
            "surrogate": True,
            "oversize": False,
            "object": False,
            "not_a_dict": False,
            "bytes": True,
            "untouched": True,
            "last": True,
        }
        w.until(lambda: "last" in w.ledger.actions(), "the last event")
        assert w.ledger.dropped == {"oversize": 1, "unencodable": 2}
        assert w.ledger.documents[0]["file"]["path"] == "/tmp/\\xff\\xfe name"
        assert w.ledger.actions() == ["surrogate", "bytes", "same", "last"]
        assert w.next_beat().dropped == {"oversize": 1, "unencodable": 2}
        texts = [log.message for log in w.logs() if log.level == "err"]
        assert any("'oversize' was dropped, it has 60" in text for text in texts)
        assert any("'object' was dropped, it cannot be encoded" in text for text in texts)


def test_wait_returns_readable_descriptors_and_runs_tickers_beside(tmp_path):
    with worker(tmp_path, {"listener": "Listener"}) as w:
        w.configure()
        w.until(lambda: w.ledger.actions().count("read") >= 3, "three reads")
        w.send(Stop())
        assert w.finish() == 0


# Configuration


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"greting": "x"}, "module greeter: there is no field greting; did you mean greeting?"),
        ({"count": -1}, "module greeter: field count: expected `int` >= 0"),
        ({"greeting": "wrong"}, "module greeter refused it: greeting: 'wrong' cannot be used"),
        ({"greeting": "crash"}, "module greeter refused it: ZeroDivisionError: reconfigure is broken"),
    ],
)
def test_a_refused_configuration_leaves_the_old_one_and_says_why(tmp_path, settings, error):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure({"greeting": "first"})
        assert applied(w, 1).ok
        w.configure(settings)
        answer = applied(w, 2)
        assert (answer.ok, answer.error) == (False, error)
        assert w.ask("config").value["greeting"] == "first"
        w.configure({"greeting": "third"})
        assert applied(w, 3).ok
        assert w.ask("config").value["greeting"] == "third"
        assert w.ledger.documents[-1]["labels"]["old"] == "first"


def test_a_module_starts_on_its_defaults_when_the_first_configuration_is_refused(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure({"nonsense": 1})
        assert not applied(w, 1).ok
        w.wait_for(Ready)
        assert w.ask("config").value["greeting"] == "hello"


def test_a_configuration_that_init_refuses_is_refused_and_the_defaults_run(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter", "other": "Greeter"}) as w:
        w.configure({"greeter": {"refuse_init": True, "greeting": "x"}, "other": {"greeting": "y"}})
        answer = applied(w, 1)
        assert not answer.ok
        assert "init does not like it" in answer.error
        assert w.ask("config", "greeter").value["greeting"] == "hello"
        assert w.ask("config", "other").value["greeting"] == "hello"


def test_a_module_with_a_setting_that_has_no_default_waits_for_it(tmp_path):
    with worker(tmp_path, {"needy": "Needy"}) as w:
        w.configure({})
        assert not applied(w, 1).ok
        w.until(lambda: w.of(Beat) and "waits for a configuration" in w.last_beat().modules[0].error, "the wait")
        w.configure({"path": "/etc"})
        assert applied(w, 2).ok
        w.until(lambda: w.ledger.documents, "the start")
        assert w.ledger.documents[0]["message"] == "/etc"


def test_the_configuration_in_force_is_confirmed_without_asking_the_module(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure({"greeting": "a"}, hash="same")
        assert applied(w, 1).ok
        w.configure({"greeting": "a"}, hash="same")
        assert applied(w, 2).ok
        w.ask("config")
        assert w.ledger.actions() == ["started"]


def test_when_one_module_refuses_those_before_it_go_back(tmp_path):
    with worker(tmp_path, {"one": "Greeter", "two": "Greeter"}) as w:
        w.configure({"one": {"greeting": "1"}, "two": {"greeting": "2"}})
        assert applied(w, 1).ok
        w.configure({"one": {"greeting": "new"}, "two": {"greeting": "wrong"}})
        answer = applied(w, 2)
        assert not answer.ok
        assert answer.error.startswith("module two refused it")
        w.until(lambda: w.ledger.actions().count("reconfigured") == 2, "the way back")
        assert w.ask("config", "one").value["greeting"] == "1"
        assert w.ask("config", "two").value["greeting"] == "2"
        w.configure({"three": {}})
        assert "module 'three' that this worker does not have" in applied(w, 3).error


def test_a_module_that_does_not_wait_does_not_get_the_configuration_but_may_get_the_latest(tmp_path):
    with worker(tmp_path, {"stubborn": "Stubborn"}) as w:
        w.configure({"greeting": "a"})
        assert applied(w, 1).ok
        w.configure({"greeting": "b"})
        w.next_beat()  # by now the module has it on offer, and those after it have to wait
        w.configure({"greeting": "c"})
        w.configure({"greeting": "d"})
        assert applied(w, 2).error == "module stubborn did not take the configuration within 10 s"
        (w.state_dir / "yield").touch()
        assert applied(w, 4).ok
        assert w.ask("config").value["greeting"] == "d"
        assert [(d["message"], d["labels"]["old"]) for d in w.ledger.documents] == [("a", "a"), ("d", "a")]
        assert {answer.revision for answer in w.of(Applied)} == {1, 2, 4}


def test_what_comes_while_a_task_sleeps_is_done_right_after_it(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure()
        assert applied(w, 1).ok
        w.send(Task(id="nap", task="nap"))
        w.until(lambda: w.of(Beat) and w.last_beat().modules[0].last_task == "nap", "the nap")
        w.configure({"greeting": "morning"})
        assert applied(w, 2).ok
        assert w.of(Result)[0].id == "nap"


def test_a_refusal_after_ten_seconds_of_starting_is_still_told(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure({"init_seconds": 11.0, "refuse_init": True})
        assert w.wait_for(Applied).ok
        answer = w.wait_for(Applied, lambda message: not message.ok)
        assert answer.revision == 1
        assert w.ask("config").value["greeting"] == "hello"


def test_a_slow_start_does_not_hold_up_ready_for_long(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure({"init_seconds": 4.0})
        w.wait_for(Ready)
        assert not w.of(Applied)
        assert applied(w, 1).ok


def test_the_log_level_changes_at_once(tmp_path):
    with worker(tmp_path, {"chatter": "Chatter"}) as w:
        w.configure(log_level="err")
        w.ask("odd", lines=3)
        assert w.logs() == []
        w.configure(log_level="debug")
        w.ask("odd", lines=3)
        w.until(lambda: len(w.logs()) >= 7, "the lines")
        assert w.logs()[-1].message == "below the level"


def test_degrade_and_normal_reach_the_module(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure()
        w.send(Control(action="degrade"))
        assert w.ask("config").value["degraded"] is True
        w.send(Control(action="normal"))
        assert w.ask("config").value["degraded"] is False


# Failures


def test_a_failing_module_is_reported_and_started_again_while_its_neighbour_goes_on(tmp_path):
    with worker(tmp_path, {"crasher": "Crasher", "pulse": "Pulse"}) as w:
        w.configure()
        assert applied(w, 1).ok
        w.until(lambda: w.ledger.actions().count("up") >= 3, "two restarts")
        ticks = w.ledger.actions().count("tick")
        w.until(lambda: w.ledger.actions().count("tick") > ticks + 3, "the neighbour's ticks")
        states = {module.name: module for module in w.next_beat().modules}
        assert states["pulse"].state == "running"
        assert states["crasher"].restarts >= 2
        assert states["crasher"].error == "RuntimeError: on purpose\\nforged line"
        log = next(log for log in w.logs() if log.level == "err")
        assert log.module == "crasher"
        assert "RuntimeError: on purpose" in log.message
        assert log.message.count(" in fail") == 4
        assert w.ledger.actions().count("down") >= 2


@pytest.mark.parametrize(("kind", "text"), [("Leaver", "SystemExit: 3"), ("Returner", "ReturnedEarlyError")])
def test_leaving_without_being_told_counts_as_a_failure(tmp_path, kind, text):
    with worker(tmp_path, {"m": kind}) as w:
        w.configure()
        log = w.wait_for(Log, lambda log: log.level == "err")
        assert text in log.message
        w.until(lambda: w.of(Beat) and w.last_beat().modules[0].state == "backoff", "the backoff")
        assert w.process.poll() is None


def test_stop_interrupts_a_backoff(tmp_path):
    with worker(tmp_path, {"m": "Returner"}) as w:
        w.configure()
        w.until(lambda: w.of(Beat) and w.last_beat().modules[0].restarts >= 2, "two restarts")
        w.send(Stop())
        assert w.finish() == 0
        assert w.last_beat().modules[0].state == "stopped"


def test_a_failure_of_shutdown_is_logged_and_nothing_more(tmp_path):
    with worker(tmp_path, {"m": "ShutdownCrasher"}) as w:
        w.configure()
        w.wait_for(Ready)
        w.send(Stop())
        assert w.finish() == 0
        assert any("shutdown failed: OSError: cannot close" in log.message for log in w.logs())


def test_a_module_that_cannot_be_loaded_does_not_keep_its_neighbour(tmp_path):
    with worker(tmp_path, {"good": "Pulse", "bad": "NotAModule"}) as w:
        w.configure({"bad": {}})
        assert w.wait_for(Ready).modules == ["good"]
        w.until(lambda: "tick" in w.ledger.actions(), "ticks")
        bad = next(module for module in w.last_beat().modules if module.name == "bad")
        assert bad.state == "stopped"
        assert "no class derived from" in bad.error


def test_a_worker_without_any_module_that_loads_exits_78_and_says_why(tmp_path):
    with worker(tmp_path, {"bad": "Missing"}) as w:
        assert w.finish() == 78
        assert "module bad: there is no Missing in" in w.stderr()
        assert any("module bad: there is no Missing in" in log.message for log in w.logs())


# Tasks


def test_tasks_are_answered_whatever_they_do(tmp_path):
    with worker(tmp_path, {"worker": "Worker"}) as w:
        w.configure()
        assert w.ask("echo", a=[1, {"b": None}]).value == {"a": [1, {"b": None}]}
        assert w.ask("fail").error == "task 'fail' failed: ValueError: the task is wrong"
        assert "SystemExit" in w.ask("exit").error
        assert "cannot be sent" in w.ask("object").error
        assert "32768 are allowed" in w.ask("large").error
        assert w.ask("surrogate").value == "\\xff"
        assert w.ask("unknown").error == "the module has no task 'unknown'"
        assert "no module 'nobody'" in w.ask("echo", "nobody").error
        assert w.next_beat().modules[0].last_task == "unknown"


def test_a_task_past_its_time_is_refused(tmp_path):
    with worker(tmp_path, {"worker": "Worker"}) as w:
        w.configure()
        w.send(Task(id="late", task="echo", not_after=time.time() - 1))
        assert "came too late" in w.wait_for(Result).error
        w.send(Task(id="soon", task="echo", not_after=time.time() + 3600))
        assert w.wait_for(Result, lambda result: result.id == "soon").ok


def test_more_tasks_than_the_queue_holds_are_refused_as_busy_and_the_rest_when_stopping(tmp_path):
    with worker(tmp_path, {"worker": "Worker"}) as w:
        w.configure()
        w.wait_for(Ready)
        for number in range(20):
            w.send(Task(id=str(number), task="sleep", arguments={"seconds": 600}))
        w.until(lambda: len(w.of(Result)) >= 11, "refusals")
        assert all(result.error.startswith("busy") for result in w.of(Result))
        w.send(Stop())
        assert w.finish() == 0
        assert sorted(int(result.id) for result in w.of(Result)) == list(range(20))
        assert sum(result.error == "the worker is stopping" for result in w.of(Result) if result.error) >= 7


# Logs


def test_log_lines_over_the_rate_are_counted_and_the_count_arrives(tmp_path):
    with worker(tmp_path, {"chatter": "Chatter"}) as w:
        w.configure()
        w.ask("go", lines=1000)
        w.until(lambda: sum(log.suppressed + ("of many" in log.message) for log in w.logs()) == 1000, "the count")
        assert len(w.logs()) < 300


def test_odd_log_lines_arrive_as_one_bounded_line(tmp_path):
    with worker(tmp_path, {"chatter": "Chatter"}) as w:
        w.configure()
        w.ask("odd")
        w.until(lambda: len(w.logs()) >= 3, "the lines")
        messages = [log.message for log in w.logs()]
        assert "cannot be formatted" in messages[0]
        assert len(messages[1].encode()) <= 4096
        assert messages[2] == "forged\\nline \\x1b[31m and \\xff"


# Stopping


def test_stop_lets_modules_finish_and_sends_all_that_is_queued(tmp_path):
    with worker(tmp_path, {"one": "Parting", "two": "Parting"}) as w:
        w.configure()
        w.wait_for(Ready)
        w.send(Stop(reason="test"))
        assert w.finish() == 0
        assert w.ledger.delivered == {"event": 200}
        assert isinstance(w.messages[-1], Beat)
        assert w.last_beat().emitted == {"event": 200}
        assert w.last_beat().queued == 0
        assert any(log.message == "stopping: test" for log in w.logs())


def test_a_program_that_a_module_left_running_does_not_hold_the_pipe(tmp_path):
    with worker(tmp_path, {"greeter": "Greeter"}) as w:
        w.configure()
        child = w.ask("run").value
        w.send(Stop())
        assert w.finish() == 0
        os.kill(child, signal.SIGKILL)  # still there: the end of the pipe did not wait for it


def test_the_master_may_close_its_pipe_right_after_stop(tmp_path):
    with worker(tmp_path, {"one": "Parting"}) as w:
        w.configure()
        w.wait_for(Ready)
        w.send(Stop())
        w.close_config()
        assert w.finish() == 0
        assert w.ledger.delivered == {"event": 100}


def test_sigterm_is_an_orderly_stop_and_other_signals_do_nothing(tmp_path):
    with worker(tmp_path, {"one": "Parting"}) as w:
        w.configure()
        w.wait_for(Ready)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
            w.process.send_signal(number)
        w.next_beat()
        w.process.send_signal(signal.SIGTERM)
        assert w.finish() == 0
        assert w.ledger.delivered == {"event": 100}


def test_sigterm_before_any_configuration_ends_the_worker(tmp_path):
    with worker(tmp_path, {"quiet": "Quiet"}) as w:
        w.wait_for(Beat)
        w.process.send_signal(signal.SIGTERM)
        assert w.finish() == 0


def test_a_module_that_does_not_come_back_does_not_keep_the_process(tmp_path):
    with worker(tmp_path, {"hanger": "Hanger"}) as w:
        w.configure()
        w.wait_for(Ready)
        w.send(Stop())
        assert w.finish() == 0


@pytest.mark.parametrize("end", ["close_config", "close_events"])
def test_the_end_of_the_master_ends_the_worker(tmp_path, end):
    with worker(tmp_path, {"pulse": "Pulse"}) as w:
        w.configure()
        w.until(lambda: w.ledger.documents, "a tick")
        getattr(w, end)()
        assert w.process.wait(30) == 0


def test_a_stop_with_a_pipe_that_nobody_reads_ends_in_bounded_time(tmp_path):
    with worker(tmp_path, {"flood": "Flood"}) as w:
        w.configure({"total": 5000})
        w.send(Stop())
        assert w.process.wait(30) == 0
        w.finish()
        for batch in w.of(Events):
            assert batch.count


@pytest.mark.parametrize(
    "garbage",
    [HEADER.pack(2**31), HEADER.pack(1) + b"\xc1", HEADER.pack(0), HEADER.pack(10) + b"\x92\xa5bogus\x80\x80\x80"],
    ids=["too large", "no msgpack", "empty", "not a pair"],
)
def test_what_is_no_message_ends_the_worker_with_70_and_a_line(tmp_path, garbage):
    with worker(tmp_path, {"quiet": "Quiet"}) as w:
        w.configure()
        w.wait_for(Ready)
        os.write(w.config_fd, garbage)
        assert w.process.wait(30) == 70
        assert w.stderr().startswith("garrison: worker w: the master sent what cannot be understood")
        assert len(w.stderr().splitlines()) == 1
