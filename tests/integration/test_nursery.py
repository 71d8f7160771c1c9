"""The nursery, as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from garrison.supervisor.nursery.client import NurseryDiedError, NurseryError
from tests.e2e._invariants import children
from tests.integration._nursery_support import House, eventually, house, spawned, state_of

FDS = """
import json, os
links = {}
for fd in os.listdir("/proc/self/fd"):
    try:
        links[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        pass  # the descriptor of the listing itself
print(json.dumps(links))
"""
ORPHANS = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(0.2)
    os._exit(3)
os.wait()
"""


def kernel_text(path: str) -> str:
    return Path(path).read_text()


def in_house(test: Callable[[House], Awaitable[None]]) -> None:
    async def main() -> None:
        async with house() as made:
            await test(made)

    asyncio.run(main())


def test_a_child_waits_at_its_gate_and_ends_without_a_sound_when_the_gate_is_closed() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery, "/bin/sh", "-c", "echo never") as child:
            await asyncio.sleep(0.1)
            assert "nursery" in kernel_text(f"/proc/{child.pid}/cmdline")
            assert os.getsid(child.pid) == child.pid
            child.shut("gate")
            report = await child.ended()
            assert report is not None
            assert os.waitstatus_to_exitcode(report.status) == 0
            assert child.output() == ""

    in_house(test)


def test_an_open_gate_lets_the_program_run_and_its_end_is_reported_with_what_it_used() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery, sys.executable, "-c", "print('ran'); raise SystemExit(7)") as child:
            child.open_gate()
            report = await child.ended()
            assert report is not None
            assert (report.pid, os.waitstatus_to_exitcode(report.status)) == (child.pid, 7)
            assert report.user_seconds + report.system_seconds > 0
            assert report.max_rss_bytes > 1024 * 1024
            assert child.output() == "ran\n"

    in_house(test)


def test_a_program_gets_its_five_descriptors_and_no_other() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        stray = os.open("/dev/null", os.O_RDONLY)
        try:
            async with spawned(nursery, sys.executable, "-c", FDS) as child, spawned(nursery, "/bin/true"):
                child.open_gate()
                await child.ended()
                links = json.loads(child.output())
        finally:
            os.close(stray)
        assert sorted(links) == ["0", "1", "2", "3", "4"], links
        assert links["0"] == "/dev/null"

    in_house(test)


def test_the_pidfd_is_of_the_child_and_passes_to_no_other_program() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery) as child:
            assert child.child is not None
            if child.child.pidfd is None:
                pytest.skip("this kernel has no pidfd")
            info = kernel_text(f"/proc/self/fdinfo/{child.child.pidfd}")
            assert f"Pid:\t{child.pid}\n" in info
            assert not os.get_inheritable(child.child.pidfd)
            os.kill(nursery.pid, signal.SIGKILL)
            await eventually(lambda: not nursery.alive, "its death is noticed")
            another = await made.keeper.get()
            assert another.pid != nursery.pid
            links = [os.readlink(f"/proc/{another.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{another.pid}/fd")]
            assert not [link for link in links if "pidfd" in link]

    in_house(test)


def test_orphans_of_a_worker_come_to_the_nursery_and_are_reaped_without_a_report() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery, sys.executable, "-c", ORPHANS) as child:
            child.open_gate()
            report = await child.ended()
            assert report is not None
            assert report.status == 0
            await eventually(lambda: children(nursery.pid) == {}, "no zombie is left")
            assert nursery.alive

    in_house(test)


def test_signals_that_end_the_master_are_ignored() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
            os.kill(nursery.pid, signo)
        async with spawned(nursery) as child:
            child.open_gate()
            assert await child.ended() is not None
        assert nursery.alive

    in_house(test)


def test_a_nursery_has_one_thread_and_nothing_heavy_in_memory() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery) as child:
            inspected = await nursery.inspect()
            assert inspected.threads == 1
            assert inspected.children == (child.pid,)
            roots = {name.partition(".")[0] for name in inspected.modules}
            assert not roots & {"asyncio", "grpc", "etcd3", "kafka", "ssl", "concurrent"}

    in_house(test)


def test_the_end_of_the_socket_kills_every_child_also_one_at_its_gate() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery) as gated, spawned(nursery, "/bin/sleep", "600") as running:
            running.open_gate()
            pids = (gated.pid, running.pid, nursery.pid)
            await made.keeper.stop()
            assert [state_of(pid) for pid in pids] == ["X"] * 3
            assert await running.ended() is None
            assert made.losses == 0  # it was asked to
            assert made.said == []

    in_house(test)


def test_a_nursery_that_dies_while_it_is_asked_fails_that_start_and_tells_of_its_children() -> None:
    async def test(made: House) -> None:
        nursery = await made.keeper.get()
        async with spawned(nursery, "/bin/sleep", "600") as child:
            child.open_gate()
            os.kill(nursery.pid, signal.SIGSTOP)
            await eventually(lambda: state_of(nursery.pid) == "T", "it stands")

            async def ask() -> None:
                async with spawned(nursery):
                    raise AssertionError("it answered")

            asked = asyncio.ensure_future(ask())
            await asyncio.sleep(0.05)
            os.kill(nursery.pid, signal.SIGKILL)
            with pytest.raises(NurseryDiedError):
                await asked
            assert await child.ended() is None
            await eventually(lambda: state_of(child.pid) == "X", "its child went with it")
        assert made.losses == 1
        # The first one that dies is replaced at once.
        async with asyncio.timeout(20):
            assert (await made.keeper.get()).alive

    in_house(test)


def test_a_nursery_that_hangs_at_its_start_is_given_up_at_once_when_that_is_interrupted() -> None:
    async def test(made: House) -> None:
        asked = asyncio.ensure_future(made.keeper.get())
        await eventually(lambda: made.keeper.pid, "it is spawned")
        pid = made.keeper.pid
        os.kill(pid, signal.SIGSTOP)
        behind = asyncio.ensure_future(made.keeper.get())
        await asyncio.sleep(0)
        made.keeper.interrupt()
        for waiting in (asked, behind):
            with pytest.raises(NurseryDiedError):
                await asyncio.wait_for(waiting, 10)
        assert made.keeper.pid == 0  # nor did the one that waited behind it start another
        assert state_of(pid) == "X"
        assert (await made.keeper.get()).alive

    in_house(test)


def test_an_interpreter_that_is_gone_is_named_and_the_next_try_comes_later_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(made: House) -> None:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/no/such/python")
            for least in (0.0, 0.4):
                begin = loop.time()
                with pytest.raises(NurseryError, match="/no/such/python"):
                    await made.keeper.get()
                assert loop.time() - begin >= least
            # A wait can be given up: an engaged killswitch or a stop does not sit it out.
            asked = asyncio.ensure_future(made.keeper.get())
            await asyncio.sleep(0.05)
            made.keeper.interrupt()
            with pytest.raises(NurseryDiedError):
                await asyncio.wait_for(asked, 0.5)
        assert made.keeper._unreaped == []
        assert (await made.keeper.get()).alive

    in_house(test)


def test_a_closed_keeper_starts_nobody() -> None:
    async def test(made: House) -> None:
        await made.keeper.get()
        await made.keeper.close()
        with pytest.raises(NurseryDiedError, match="stopping"):
            await made.keeper.get()

    in_house(test)
