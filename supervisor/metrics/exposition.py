"""The text format of Prometheus, version 0.0.4. Pure.

Written by hand: the client library costs 3.8 MB beside what the master has loaded anyway (0.26 on CPython 3.11), for
registries and locks that nothing here needs.
Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MAX_LABEL_CHARACTERS = 200
"""A longer label value is cut: it may come from a key, a file or a worker."""

_LABEL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n"})


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric.

    Attributes:
        name: Its name, with the base unit, and ``_total`` where it is a counter.
        kind: ``counter``: only grows while what it counts lives. ``gauge``: goes up and down.
        help: What it says.
        labels: Names of its labels.
    """

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


class Exposition:
    """Collects the samples of one scrape.

    Args:
        metrics: Every metric there is; the order is that of the text.
        max_series: Most series of one metric.

    Attributes:
        left_out: Series that had no room.
    """

    __slots__ = ("_max_series", "_metrics", "_samples", "left_out")

    def __init__(self, metrics: Sequence[Metric], max_series: int = 2000) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._samples: dict[str, dict[tuple[str, ...], float]] = {metric.name: {} for metric in metrics}
        self._max_series = max_series
        self.left_out = 0

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a sample; a second one of the same series replaces the first.

        Raises:
            KeyError: The metric is not one of those given.
            ValueError: There are more or fewer labels than the metric has.
        """
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {len(labels)} of them")
        samples = self._samples[metric.name]
        if labels not in samples and len(samples) >= self._max_series:
            self.left_out += 1
            return
        samples[labels] = value

    def text(self) -> bytes:
        """Return the whole text; a metric without a sample is left out."""
        lines: list[str] = []
        for name, samples in self._samples.items():
            if not samples:
                continue
            metric = self._metrics[name]
            lines.append(f"# HELP {metric.name} {metric.help.translate(_HELP_ESCAPES)}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += [f"{metric.name}{_labels(metric.labels, values)} {number(v)}" for values, v in samples.items()]
        # A label may come from a key of the store or a file's name and hold what is no text.
        return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace") if lines else b""


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    pairs = (
        f'{name}="{value[:MAX_LABEL_CHARACTERS].translate(_LABEL_ESCAPES)}"'
        for name, value in zip(names, values, strict=True)
    )
    return "{" + ",".join(pairs) + "}"


def number(value: float) -> str:
    """Return a number as the format wants it; an integer keeps all of its digits."""
    if isinstance(value, int):  # a bool is one, and 0 or 1
        return str(int(value))
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value)
