"""Runs `garrison fleet …` as an operator would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.etcd.cluster import Cluster, Tls

GARRISON = Path(sys.executable).parent / "garrison"


def fleet(*arguments: str | Path, stdin: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the fleet and check its exit code."""
    done = subprocess.run(
        [GARRISON, "fleet", *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def reach(cluster: Cluster, tls: Tls | None = None) -> list[str]:
    """Return the options with which a command reaches a cluster."""
    options = ["--endpoints", ",".join(cluster.endpoints)]
    tls = tls or cluster.tls
    if tls is not None:
        options += ["--ca-cert", str(tls.ca), "--cert", str(tls.client_cert), "--key", str(tls.client_key)]
    return options
