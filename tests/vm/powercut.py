"""Ten power cuts at random moments while the agent writes: it starts each time, with valid state."""

from __future__ import annotations

import random
import re
import time

from tests.vm import steps
from tests.vm.agent import WORKERS, Agent
from tests.vm.machine import Machine
from tests.vm.transcript import Transcript

FIRST, SECOND = range(1, 6), range(6, 11)
"""The ten cuts, by machine: two machines, so that they take half of the time. The number of a machine's first cut is
the seed of its random moments, which are the same each time; what runs at them differs.
"""

WRITING = f"""\
{steps.EMULATED}
# Nobody listens there: all events go to the spool, each before its worker hears that it is safe.
[sink]
backend = "kafka"
[sink.kafka]
bootstrap_servers = ["127.0.0.1:9"]
topic = "none"
[spool]
durability = "always"
keep_free = 0
"""

_LOAD = """\
while :; do /bin/true; sleep 0.1; done &
while :; do
    echo start > /etc/garrison/store/hids/server/config/@all/worker/files; sleep 0.7
    echo freeze > /etc/garrison/store/hids/server/config/@all/worker/files; sleep 0.7
done &
"""
"""Events, and keys that change, so that state, cache, history and spool are written all the time."""

_CHECK = """\
import json, os, sqlite3
folder = "/var/lib/garrison"
for name in os.listdir(folder):
    if name.endswith(".json"):
        with open(f"{folder}/{name}", "rb") as file:
            json.load(file)
spool = sqlite3.connect("/var/tmp/copy/spool.sqlite")
assert spool.execute("pragma integrity_check").fetchall() == [("ok",)]
aside = sorted(name for name in os.listdir(folder) if ".corrupt-" in name)
tables = [name for (name,) in spool.execute("select name from sqlite_master where type = 'table'")]
print(sum(spool.execute(f'select count(*) from "{name}"').fetchone()[0] for name in tables), *aside)
"""


def run(machine: Machine, transcript: Transcript, cuts: range) -> None:
    """Go through some of the cuts on a machine that has been started, with `WRITING`."""
    agent = Agent(machine)
    moments = random.Random(cuts[0])
    steps.booted(machine, transcript)
    with transcript.step("the agent comes up at the image's first boot, and writes all the time") as say:
        agent.wait_running()
        machine.run("mkdir -p /etc/garrison/store/hids/server/config/@all/worker; sync")
        say("2 of 2 workers run; every event and every change goes to the disk")
    wanted = "start"
    for number in cuts:
        machine.run(f"setsid bash -c '{_LOAD}' > /dev/null 2>&1 &")
        acknowledged = ""
        moment = time.monotonic() + moments.uniform(2, 8)
        with transcript.step(f"power cut {number}, start") as say:
            while time.monotonic() < moment:
                wanted = "stop" if wanted == "start" else "start"
                agent.ask(wanted, worker="process")
                acknowledged = wanted
            time.sleep(moments.uniform(0, 0.5))
            machine.cut()
            machine.start()
            after = agent.wait(
                "the agent runs",
                lambda found, last=acknowledged: all(found[name]["state"] in _settled(name, last) for name in WORKERS),
            )
            now = after["process"]["state"]
            status = agent.status()
            assert status is not None
            restarts, pid = agent.show("NRestarts", "MainPID")
            assert restarts == "0", "it did not start at once"
            # A moment in which nobody writes, for a copy that belongs together.
            rows, *said = machine.run(
                f"set -e; rm -rf /var/tmp/copy; mkdir /var/tmp/copy; kill -STOP {pid}\n"
                f"cp /var/lib/garrison/spool.sqlite* /var/tmp/copy; kill -CONT {pid}\n"
                f"/opt/garrison/bin/python3 -I -S - <<'END'\n{_CHECK}END\n"
                "journalctl -b -u garrison -o cat"
            ).splitlines()
            assert len(rows.split()) == 1, f"set aside: {rows}"
            said += status["agent"]["problems"]
            troubles = [text for text in said if re.search(r"cannot be read|set aside|corrupt|begun anew", text)]
            assert not troubles, troubles
            say(f"`{acknowledged}` was answered and holds: process {now}; spool sound, {rows.strip()} rows")


def _settled(name: str, acknowledged: str) -> tuple[str, ...]:
    if name == "process" and acknowledged == "stop":
        return ("stopped",)
    if name == "process":
        return ("running",)
    return ("running", "frozen", "probation", "throttled")
