"""A real systemd as process 1 of its own namespaces, on a copy of this machine's root that is thrown away.

It has cgroups below a node of its own in every hierarchy of the machine, no network but loopback, and nothing that it
does reaches the machine. What it is not: another kernel; tests/vm has that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_SECONDS = 60.0
_MOUNT_OPTIONS = frozenset(
    {"rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "seclabel", "xattr", "clone_children"}
)
_NAMED = ("none",)

_SET_UP = r"""
set -e
d=$1 shared=$2 node=$3
shift 3
# Hierarchies, as OPTIONS:PATH. From here on the namespace's root is our node in each.
for each in "$@"; do echo $$ > "${each#*:}/$node/cgroup.procs"; done
exec unshare -C sh -c '
    set -e
    d=$1 shared=$2
    shift 3
    mount --make-rprivate /
    mount -t tmpfs -o size=3G tmpfs "$d"
    mkdir "$d/upper" "$d/work" "$d/root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$d/upper,workdir=$d/work" "$d/root"
    cd "$d/root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    case "$#$1" in
    1:*) mount -t cgroup2 cgroup2 sys/fs/cgroup ;;
    *)
        mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
        for each in "$@"; do
            options=${each%%:*}
            place=sys/fs/cgroup/$(basename "${each#*:}")
            mkdir -p "$place"
            if [ -n "$options" ]; then
                mount -t cgroup -o "$options" cgroup "$place"
            else
                mount -t cgroup2 cgroup2 "$place"
            fi
        done
        ;;
    esac
    mount -t tmpfs -o mode=755 tmpfs dev
    for name in null zero full random urandom tty; do
        touch "dev/$name"
        mount --bind "/dev/$name" "dev/$name"
    done
    mkdir dev/pts dev/shm
    mount -t devpts devpts dev/pts
    ln -s /proc/self/fd dev/fd
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs tmpfs tmp
    mkdir -p shared
    mount --bind "$shared" shared
    hostname box
    rm -rf usr/sbin/policy-rc.d etc/systemd/system/*.wants
    mkdir old
    pivot_root . old
    umount -l /old
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --log-target=console --unit=basic.target
' sh "$d" "$shared" "$node" "$@"
"""


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A cgroup hierarchy of the machine: v1 mount options ("" for v2), and where it is."""

    options: str
    path: Path


def hierarchies() -> list[Hierarchy]:
    """Return every one of the machine.

    A systemd takes over all that there are: where the box had no node of its own it would share the machine's.
    """
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found.append(Hierarchy("", Path(place)))
        elif kind == "cgroup":
            names = [name for name in options.split(",") if name not in _MOUNT_OPTIONS]
            found.append(Hierarchy(",".join((*_NAMED, *names) if names[0].startswith("name=") else names), Path(place)))
    return found


def _make(node: Path) -> None:
    node.mkdir()
    # An empty set of processors or memory lets no process in.
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (node / name).exists() and (node.parent / name).exists():
            (node / name).write_text((node.parent / name).read_text())


class SystemdBox:
    """The booted systemd.

    Args:
        folder: An empty one, for its root to be mounted on.
        shared: What is /shared inside.
    """

    def __init__(self, folder: Path, shared: Path) -> None:
        self._node = f"garrison-box-{os.getpid()}-{secrets.token_hex(3)}"
        self._hierarchies = hierarchies()
        for hierarchy in self._hierarchies:
            _make(hierarchy.path / self._node)
        places = [f"{hierarchy.options}:{hierarchy.path}" for hierarchy in self._hierarchies]
        self._log = folder.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    # However the tests end, it ends with them.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "-m", "-p", "-u", "-i", "-n", "-f", "--kill-child"),
                    *("sh", "-c", _SET_UP, "sh", folder, shared, self._node, *places),
                ],
                env={"PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._init = 0

    def boot(self) -> str:
        """Wait until the system is up; return why it is not, "" where it is."""
        end = time.monotonic() + _BOOT_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                return f"systemd ended with {self._process.returncode}: {self.log()}"
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
                self._init = int(children[0])
                if self.run("systemctl is-system-running").stdout.strip() in ("running", "degraded"):
                    return ""
            time.sleep(0.3)
        return f"systemd did not come up within {_BOOT_SECONDS:g} s: {self.log()}"

    def log(self) -> str:
        """Return the end of what systemd printed."""
        return self._log.read_text(errors="replace")[-2000:]

    def run(self, command: str, timeout: float = 240.0) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside; standard error is in with the output."""
        return subprocess.run(
            ["nsenter", "-t", str(self._init), "-m", "-p", "-u", "-i", "-n", "-C", "sh", "-c", f"cd /; {command}"],
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def close(self) -> None:
        """End all of it and remove the cgroups."""
        # The end of process 1 is the end of its namespace.
        for pid in (self._init, self._process.pid):
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        for hierarchy in self._hierarchies:
            _remove(hierarchy.path / self._node)


def _remove(node: Path) -> None:
    end = time.monotonic() + 30
    while True:
        folders = sorted((path for path in node.rglob("*") if path.is_dir()), reverse=True)
        try:
            for path in (*folders, node):
                path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            # The last of its processes is about to go.
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def need_box() -> None:
    """Skip the test where no such systemd can be started."""
    if os.geteuid() != 0:
        pytest.skip("a systemd of its own needs root")
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("systemd is not installed")
    if not any(hierarchy.options in ("", "none,name=systemd") for hierarchy in hierarchies()):
        pytest.skip("there is no cgroup hierarchy that a systemd could have")
