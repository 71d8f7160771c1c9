"""The project's own promises about itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed_for_the_wheel() -> None:
    """An editable installation finds them all anyway, so only the wheel would miss one."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        "garrison." + ".".join(init.parent.relative_to(ROOT).parts)
        for top in ("fleet", "ipc", "supervisor", "workers")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == present


def test_what_the_nursery_loads_has_no_asyncio_grpc_or_kafka_and_no_second_thread() -> None:
    code = (
        "import sys, garrison.supervisor.nursery.process, garrison.workers.runtime.process, garrison.workers.process;"
        "import threading; print(threading.active_count(), *sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[0] == "1"
    loaded = {name.partition(".")[0] for name in out[1:]}
    assert not loaded & {"asyncio", "grpc", "etcd3", "kafka", "ssl", "_ssl", "hashlib", "subprocess", "psutil", "rich"}


def test_the_master_loads_grpc_only_for_the_etcd_store() -> None:
    code = (
        "import sys, garrison.supervisor.agent, garrison.supervisor.stores.choose;"
        "import garrison.supervisor.stores.directory; print(*sorted(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in out} & {"grpc", "etcd3", "google", "cryptography"}
