"""A copy of this machine's root that is written to and thrown away, with a PID namespace of its own.

What a package's scripts do there reaches nothing of the machine: files go into memory, processes and mounts end with
the namespace, and there are no cgroups.
"""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

import pytest

_SET_UP = r"""
set -e
d=$1 shared=$2 command=$3
mount --make-rprivate /
mount -t tmpfs -o size=2G tmpfs "$d"
mkdir "$d/upper" "$d/work" "$d/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$d/upper,workdir=$d/work" "$d/root"
cd "$d/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p shared
mount --bind "$shared" shared
# What the machine's own image forbids is not what is tested.
rm -f usr/sbin/policy-rc.d
exec chroot . /bin/sh -c "$command"
"""


def run_in_copy(folder: Path, shared: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in a copy of the root; ``shared`` is /shared in there."""
    place = folder / "copy"
    place.mkdir(exist_ok=True)
    return subprocess.run(
        # However the tests end, it ends with them.
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "-m",
            "-p",
            "-n",
            "-f",
            "--kill-child",
            "sh",
            "-c",
            _SET_UP,
            "sh",
            place,
            shared,
            command,
        ],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": "/root",
            "DEBIAN_FRONTEND": "noninteractive",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )


@cache
def _why_not() -> str:
    if os.geteuid() != 0:
        return "a copy of the root needs root"
    probe = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && cd /mnt && mkdir a b c &&"
        " mount -t overlay overlay -o lowerdir=/,upperdir=a,workdir=b c"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", probe], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"no overlay of the root here: {done.stderr.strip()}"


def need_copy() -> None:
    """Skip the test where no such copy can be made."""
    if why := _why_not():
        pytest.skip(why)
