"""The benchmarks run, clean up after themselves and say what they measured. How fast anything is, is not tested."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.stats import Series, percentile
from benchmarks.supervisord import installed

ROOT = Path(__file__).parents[2]

needs_peer = pytest.mark.skipif(
    not installed(), reason="needs Supervisor in build/bench-venv: `make bench` installs it"
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/sys/fs/cgroup", os.W_OK), reason="needs root and a writable cgroup file system"
)


def nodes() -> set[str]:
    return set(glob.glob("/sys/fs/cgroup/garrison-*") + glob.glob("/sys/fs/cgroup/*/garrison-*"))


@needs_root
@needs_peer
@pytest.mark.parametrize("name", ["killswitch", "etcd"])
def test_a_quick_run_writes_a_table_and_a_document_and_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    target = tmp_path / "result.json"
    command = (sys.executable, "-m", "benchmarks", name, "--quick", "--samples", "2")
    # Not below tmp_path: the path of a Unix socket has room for 107 bytes.
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        process = subprocess.Popen(
            [*command, "--folder", folder, "--json", str(target)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=100)
        finally:
            process.terminate()
            process.wait(20)
        left = os.listdir(folder)
    assert process.returncode == 0, err
    assert not left
    # Its groups carry its process id: other tests may run agents of their own meanwhile.
    assert not {node for node in nodes() if f"-{process.pid}-" in node}
    lines = out.splitlines()
    assert "| Ratio | Goal | Met | What | Garrison: median (p99; range; n) | Beside it | A/A |" in lines
    (report,) = json.loads(target.read_text())["reports"]
    assert (report["name"], report["error"]) == (name, "")
    compared = [row for row in report["rows"] if row["ratio"] is not None]
    assert [line.count("|") for line in lines if line.startswith("| **")] == [8] * len(compared)
    for row in compared:
        assert row["ratio"] > 0
        assert 0 < row["garrison"]["min"] <= row["garrison"]["p50"] <= row["garrison"]["p99"] <= row["garrison"]["max"]
    first = compared[0]
    assert (first["garrison"]["n"], first["beside"]["n"]) == (2, 2)
    assert first["met"] in (True, False)


def test_an_unknown_benchmark_is_refused_with_the_names_there_are() -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks", "nosuch"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 64
    assert "killswitch" in done.stderr


def test_a_percentile_is_a_measured_value_and_the_control_compares_alternate_ones() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 99), percentile(values, 50), percentile([7.0], 99)) == (99.0, 50.0, 7.0)
    assert Series("drifts by turns", "ms", [2.0, 1.0] * 10).control() == 2.0
    assert Series("too few", "ms", [1.0]).control() is None
