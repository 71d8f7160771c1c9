"""The pinned etcd client is the one that was read."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

CHECK = Path(__file__).parents[2] / "packaging" / "check_etcd3.py"


def test_the_installed_client_is_the_one_that_was_checked() -> None:
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wheel_with_one_changed_file_is_found(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for file in metadata.distribution("cslab-etcd3").files or []:
            if file.suffix == ".py":
                text = Path(str(file.locate())).read_text()
                made.writestr(str(file), text + ("\nimport subprocess\n" if file.name == "locks.py" else ""))
    done = subprocess.run([sys.executable, str(CHECK), str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "etcd3/locks.py: is not the file that was checked" in done.stderr
    assert "imports subprocess" in done.stderr
