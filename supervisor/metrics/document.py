"""Writes the reference page of the metrics from the catalogue: ``python -m …document [--check] FILE``."""

from __future__ import annotations

from garrison.supervisor.metrics.catalogue import METRICS
from garrison.supervisor.settings.document import serve

_INTRODUCTION = """\
# Metrics

<!-- Generated from supervisor/metrics/catalogue.py by `make docs`. Change the catalogue, not this page. -->

What `[metrics]` exports; how, and what to do with it: [monitoring.md](monitoring.md). Counters of CPU time, memory and
the like run since the worker's present process was started and begin anew with the next one, which Prometheus takes
for what it is. A metric whose value is not known is left out.

| metric | kind | labels | |
|---|---|---|---|
"""


def page() -> str:
    """Return the whole page, in Markdown."""
    rows = (
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.help} |\n"
        for metric in METRICS
    )
    return _INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    raise SystemExit(serve(page, "Write the reference page of the metrics.", "the page, docs/metrics.md"))
