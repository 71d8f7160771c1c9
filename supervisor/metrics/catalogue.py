"""Every metric that the agent exports: the one list that the collector, the reference page and the tests share.

Base units, and one label for each thing that is asked for apart. No label takes values without bound: workers are at
most 64, states, phases and causes are fixed, and reasons are cut to a number by the collector.
"""

from __future__ import annotations

from typing import Literal

from garrison.supervisor.metrics.exposition import Metric

METRICS: list[Metric] = []
"""All of them, in the order of the text."""


def _metric(kind: Literal["counter", "gauge"], name: str, help_text: str, *labels: str) -> Metric:
    metric = Metric(name=f"garrison_{name}", kind=kind, help=help_text, labels=labels)
    METRICS.append(metric)
    return metric


def _gauge(name: str, help_text: str, *labels: str) -> Metric:
    return _metric("gauge", name, help_text, *labels)


def _counter(name: str, help_text: str, *labels: str) -> Metric:
    return _metric("counter", name, help_text, *labels)


# The agent

AGENT_INFO = _gauge(
    "agent_info",
    "The agent; always 1. The host is its name in the store.",
    "host",
    "version",
    "cgroup_mode",
)
AGENT_START = _gauge("agent_start_time_seconds", "When the master was started, since the epoch.")
COLLECTED = _gauge(
    "metrics_collected_timestamp_seconds", "When these numbers were taken, since the epoch: old ones mean no agent."
)
AGENT_CPU = _counter("agent_cpu_seconds_total", "CPU time of master and nursery together.")
AGENT_MEMORY = _gauge("agent_memory_bytes", "Memory of master and nursery together, without page cache.")
AGENT_RESIDENT = _gauge("agent_resident_memory_bytes", "Resident memory of the master, shared parts included.")
AGENT_FDS = _gauge("agent_open_fds", "Open file descriptors of the master.")
AGENT_MAX_FDS = _gauge("agent_max_fds", "Most file descriptors that the master may have open.")
AGENT_THREADS = _gauge("agent_threads", "Threads of the master.")
AGENT_SHED = _gauge("agent_shed_level", "What the master gives up because it is above its own share: 0 nothing to 5.")
NURSERY_REPLACED = _counter("nursery_replacements_total", "Nurseries that died unasked and were replaced.")
AGENT_PROBLEMS = _gauge("agent_problems", "Problems that the status shows now.")

# Control

KILLSWITCH = _gauge("killswitch_engaged", "1 while the killswitch is engaged and no worker may run.")
STORE_INFO = _gauge("store_info", "The store in use; always 1.", "backend", "endpoint")
STORE_CONNECTED = _gauge("store_connected", "1 while changes in the store reach the agent.")
STORE_REVISION = _gauge("store_revision", "Revision of the last snapshot of the store.")
STORE_STALE = _gauge("store_stale_seconds", "Age of what is in force; 0 while connected.")
STORE_REGISTERED = _gauge("store_registered", "1 while the registration of this host stands in the store on a lease.")

# All workers together

WORKERS_CPU = _counter("workers_cpu_seconds_total", "CPU time of all workers together.")
WORKERS_THROTTLED = _counter("workers_cpu_throttled_seconds_total", "Time in which their common quota stopped them.")
WORKERS_MEMORY = _gauge("workers_memory_bytes", "Memory of all workers together, page cache not counted.")
WORKERS_CPU_LIMIT = _gauge("workers_cpu_limit_cores", "CPU cap of all workers together.")
WORKERS_MEMORY_LIMIT = _gauge("workers_memory_limit_bytes", "Memory cap of all workers together.")

# Each worker

WORKER_STATE = _gauge("worker_state", "1 for the state that the worker is in, 0 for the others.", "worker", "state")
WORKER_WANTED = _gauge("worker_wanted", "1 where the worker is to run, 0 where it is not.", "worker")
WORKER_HELD = _gauge("worker_held", "1 while the worker gives way to the host.", "worker")
WORKER_REJECTED = _gauge("worker_config_rejected", "1 while the worker refuses its newest configuration.", "worker")
WORKER_STARTS = _counter("worker_starts_total", "Processes started for the worker by this master.", "worker")
WORKER_CPU = _counter("worker_cpu_seconds_total", "CPU time of the worker's present process.", "worker")
WORKER_CPU_LIMIT = _gauge("worker_cpu_limit_cores", "CPU cap in force.", "worker")
WORKER_PERIODS = _counter("worker_cpu_periods_total", "CFS periods in which the worker wanted to run.", "worker")
WORKER_THROTTLED_PERIODS = _counter(
    "worker_cpu_throttled_periods_total", "Those of them in which its quota stopped it.", "worker"
)
WORKER_THROTTLED = _counter("worker_cpu_throttled_seconds_total", "How long its quota stopped it.", "worker")
WORKER_MEMORY = _gauge("worker_memory_bytes", "Memory that cannot be dropped: what the breaker judges.", "worker")
WORKER_MEMORY_CHARGED = _gauge("worker_memory_charged_bytes", "All memory charged to it, with page cache.", "worker")
WORKER_MEMORY_HIGH = _gauge("worker_memory_high_bytes", "Memory above which the kernel slows it down.", "worker")
WORKER_MEMORY_LIMIT = _gauge("worker_memory_limit_bytes", "Memory above which the kernel kills it.", "worker")
WORKER_OOM = _counter("worker_oom_kills_total", "Processes of it that the kernel killed for want of memory.", "worker")
WORKER_FDS = _gauge("worker_open_fds", "Open file descriptors of its main process.", "worker")
WORKER_MAX_FDS = _gauge("worker_max_fds", "Most file descriptors that a process of it may have open.", "worker")
WORKER_PIDS = _gauge("worker_pids", "Its processes and threads.", "worker")
WORKER_PIDS_LIMIT = _gauge("worker_pids_limit", "Most processes and threads that it may have.", "worker")
WORKER_PHASE = _gauge("worker_breaker_phase", "1 for the phase of its breaker, 0 for the others.", "worker", "phase")
WORKER_LEVEL = _gauge("worker_breaker_level", "Trips that count at present; the fifth latches.", "worker")
WORKER_RETRY = _gauge("worker_breaker_retry_seconds", "Until the next start; 0 where none is waited for.", "worker")
WORKER_TRIPS = _counter("worker_trips_total", "Times that its breaker opened.", "worker", "cause")
WORKER_THROTTLES = _counter("worker_throttles_total", "Times that the breaker lowered its CPU quota.", "worker")

# Events

EVENTS_EMITTED = _counter("events_emitted_total", "Events numbered by the worker.", "worker")
EVENTS_DELIVERED = _counter("events_delivered_total", "Events that the sink has taken.", "worker")
EVENTS_DROPPED = _counter("events_dropped_total", "Events given up, by reason.", "worker", "reason")
EVENTS_IN_FLIGHT = _gauge("events_in_flight", "Events that are neither delivered nor dropped yet.", "worker")
QUEUE_BYTES = _gauge("queue_bytes", "What waits in the queue ahead of the sink.")
QUEUE_LIMIT = _gauge("queue_limit_bytes", "What may wait there.")
SINK_INFO = _gauge("sink_info", "The sink in use; always 1.", "backend")
SINK_WELL = _gauge("sink_up", "1 while nothing is wrong with the sink.")
SPOOL_BYTES = _gauge("spool_bytes", "What the spool takes on disk.")
SPOOL_LIMIT = _gauge("spool_limit_bytes", "What the spool may take on disk.")
SPOOL_EVENTS = _gauge("spool_events", "Events that wait in the spool.")
SPOOL_WELL = _gauge("spool_up", "1 while the spool can be used.")

# The log and the metrics themselves

LOG_SUPPRESSED = _counter("log_lines_suppressed_total", "Log lines over the rate of their source.")
LOG_DROPPED = _counter("log_lines_dropped_total", "Log lines for which the log's queue had no room.")
LOG_LOST = _counter("log_lines_lost_total", "Log lines that could not be written there.", "output")
LOG_EVENTS = _counter("log_events_total", "Log lines that went to the sink as events.")
LOG_EVENTS_SUPPRESSED = _counter(
    "log_events_suppressed_total", "Log lines that did not go to the sink, over the rate or while it was not well."
)
REQUESTS = _counter("metrics_requests_total", "Requests to the metrics endpoint, by what became of them.", "result")
COLLECT_CPU = _counter("metrics_collect_cpu_seconds_total", "CPU time that taking these numbers has cost the master.")
SERIES_LEFT_OUT = _gauge("metrics_series_left_out", "Series that are missing here because a metric had too many.")
