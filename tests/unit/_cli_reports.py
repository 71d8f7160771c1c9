"""Status reports for tests of the command line."""

from __future__ import annotations

from garrison.supervisor.control.status import (
    AgentStatus,
    BreakerStatus,
    ConfigStatus,
    EventsStatus,
    KillswitchStatus,
    LimitsStatus,
    StatusReport,
    StoreStatus,
    WorkerStatus,
)

KEY = "/hids/server/config/@group/web/worker/network"


def healthy() -> StatusReport:
    return StatusReport(
        host="web-17.example",
        agent=AgentStatus(
            pid=812,
            version="0.1.0",
            uptime_seconds=187200,
            cgroup_mode="hybrid",
            store=StoreStatus(backend="directory", connected=True, endpoint="/etc/garrison/store", revision=4711),
        ),
        workers=[
            WorkerStatus(
                name="process",
                state="running",
                pid=830,
                cpu_percent=1.23,
                memory_bytes=35757056,
                limits=LimitsStatus(cpu_quota_percent=10.0, memory_high=64 << 20, memory_max=96 << 20, pids_max=32),
                config=ConfigStatus(revision=7, hash="ab", status="applied"),
                events=EventsStatus(emitted=123456, delivered=123450, dropped={"rate": 4, "queue": 2}),
                restarts=1,
                desired_by="default",
            )
        ],
    )


def troubled() -> StatusReport:
    report = healthy()
    report.agent.killswitch = KillswitchStatus(engaged=True, scopes=["@all", "local"], reason="drill \x1b[2J")
    report.agent.store.connected = False
    report.agent.store.stale_seconds = 3700
    report.agent.problems = ["the sink's disk is full: make room in /var/log/garrison"]
    report.workers += [
        WorkerStatus(
            name="network",
            desired="stop",
            desired_by=KEY,
            state="tripped",
            breaker=BreakerStatus(state="open", trips=2, cause="cpu", retry_in_seconds=45.0),
            config=ConfigStatus(revision=8, status="rejected", error="ports: 70000 is above 65535"),
        ),
        WorkerStatus(name="files", state="failed", last_error="memory.max reads back as 0"),
        WorkerStatus(name="login", state="latched", breaker=BreakerStatus(state="latched", trips=5, cause="oom")),
    ]
    return report
