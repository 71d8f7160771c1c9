"""Programs from Debian's packages, unpacked and not installed: an installed one makes a user and starts a server."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def unpack(packages: Sequence[str], folder: Path) -> str:
    """Download packages with apt and unpack them into a folder. Returns why that is not possible, or ""."""
    with tempfile.TemporaryDirectory() as download:
        os.chmod(download, 0o755)  # apt downloads as a user of its own where it can
        fetch = ["apt-get", "download", *packages]
        for command in (fetch, ["apt-get", "update", "-qq"], fetch):
            try:
                done = subprocess.run(command, cwd=download, capture_output=True, text=True, timeout=300, check=False)
            except (OSError, subprocess.SubprocessError) as error:
                return str(error)
            if command is fetch and done.returncode == 0:
                break
        else:
            return f"apt-get download: {done.stderr.strip()[-300:]}"
        for package in Path(download).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=300)
    return ""
