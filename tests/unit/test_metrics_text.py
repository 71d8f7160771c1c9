"""The text of the metrics: what Prometheus' own parser makes of it, whatever stands in a label."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from garrison.supervisor.metrics.catalogue import METRICS
from garrison.supervisor.metrics.collect import MAX_REASONS, told
from garrison.supervisor.metrics.exposition import MAX_LABEL_CHARACTERS, Exposition, Metric, number

GAUGE = Metric(name="g_bytes", kind="gauge", help='with "quotes", a \\ and\na line', labels=("one", "two"))
COUNTER = Metric(name="c_total", kind="counter", help="counts")

# The parser splits lines as Python does, at characters that the format does not know as line ends.
LABELS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))


@given(
    st.dictionaries(st.tuples(LABELS, LABELS), st.floats(allow_nan=False) | st.integers(-(2**63), 2**63), max_size=5)
)
def test_what_goes_in_comes_out_of_the_parser(samples: dict[tuple[str, str], float]) -> None:
    out = Exposition([GAUGE, COUNTER])
    for labels, value in samples.items():
        out.add(GAUGE, value, *labels)
    out.add(COUNTER, 2**60 + 1)
    families = {family.name: family for family in text_string_to_metric_families(out.text().decode())}
    counter = families["c"].samples[0]
    assert (counter.name, counter.value, families["c"].type) == ("c_total", 2**60 + 1, "counter")
    if not samples:
        assert "g_bytes" not in families
        return
    family = families["g_bytes"]
    assert family.documentation == GAUGE.help
    cut = {(one[:MAX_LABEL_CHARACTERS], two[:MAX_LABEL_CHARACTERS]) for one, two in samples}
    assert {(sample.labels["one"], sample.labels["two"]) for sample in family.samples} == cut
    if len(cut) == len(samples):
        assert [sample.value for sample in family.samples] == list(samples.values())


@given(st.text(max_size=20))
def test_every_series_is_one_line_of_utf8(label: str) -> None:
    out = Exposition([GAUGE])
    out.add(GAUGE, 1, label, "x")
    text = out.text()
    assert text.count(b"\n") == 3
    assert text.endswith(b" 1\n")
    text.decode()


def test_numbers() -> None:
    assert [number(value) for value in (True, 0, 2**63, 0.1, 1e21, math.inf, -math.inf, math.nan)] == [
        *("1", "0", "9223372036854775808", "0.1", "1e+21", "+Inf", "-Inf", "NaN")
    ]


def test_series_are_bounded_and_what_is_left_out_is_counted() -> None:
    out = Exposition([GAUGE], max_series=10)
    for value in range(15):
        out.add(GAUGE, value, str(value), "")
    out.add(GAUGE, 100, "3", "")
    assert out.left_out == 5
    assert out.text().count(b"\ng_bytes{") == 10
    assert b'{one="3",two=""} 100\n' in out.text()


def test_labels_have_to_be_those_of_the_metric() -> None:
    with pytest.raises(ValueError, match="g_bytes"):
        Exposition([GAUGE]).add(GAUGE, 1, "one")
    with pytest.raises(KeyError):
        Exposition([COUNTER]).add(GAUGE, 1, "one", "two")


def test_no_sample_is_no_text() -> None:
    assert Exposition([GAUGE]).text() == b""


@given(st.dictionaries(st.text(max_size=8), st.integers(1, 1000), max_size=100))
def test_reasons_of_drops_are_bounded_and_none_is_lost(dropped: dict[str, int]) -> None:
    found = told(dropped)
    assert len(found) <= MAX_REASONS
    assert sum(found.values()) == sum(dropped.values())
    # A new reason changes no other one's series.
    more = told({**dropped, "a ninth character": 5})
    assert all(more[name] >= count for name, count in found.items())


def test_nothing_of_it_is_loaded_before_somebody_wants_metrics() -> None:
    script = (
        "import sys, garrison.supervisor.agent\n"
        "print([name for name in sys.modules if 'supervisor.metrics' in name or 'prometheus' in name])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == "[]\n"


def test_the_catalogue_follows_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/: prefix, base units, ``_total`` for counters and nothing else."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"garrison_[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert not re.search(r"_(ms|millis|kb|mb|mib|percent|minutes|hours)(_|$)", metric.name)
        assert metric.help.endswith(".")
        assert "\n" not in metric.help
        assert all(re.fullmatch(r"[a-z_]+", label) and not label.startswith("__") for label in metric.labels)
        assert not {"job", "instance", "le", "quantile"} & set(metric.labels)
        if "_seconds" in metric.name or "_bytes" in metric.name:
            assert re.search(r"_(seconds|bytes)(_total)?$", metric.name)
