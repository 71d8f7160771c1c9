"""The doctor's look at the kernel and at what this process may do."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import select
import socket
import struct
import time
from functools import partial
from typing import Final

from garrison.supervisor.doctor import Check, Finding, fail, ok, warn
from garrison.supervisor.rights import own, seccomp
from garrison.supervisor.rights.accounts import NoAccountError, lookup
from garrison.supervisor.worker.rights import WORKER_USER

OLDEST_KERNEL: Final = (3, 10)
EVENTS_PIPE_BYTES: Final = 256 * 1024
"""Size that the events pipe of a worker is given."""

CAPABILITIES: Final = tuple((name, *needed) for name, needed in sorted(own.needed().items()))
"""What agent and workers need, as name, bit (linux/capability.h) and purpose."""

_SLOW_CLOCKS: Final = frozenset({"hpet", "acpi_pm", "jiffies", "pit", "refined-jiffies"})
_MIN_INOTIFY: Final = {"max_user_instances": 64, "max_user_watches": 8192, "max_queued_events": 8192}
_MIN_OPEN_FILES: Final = 1024

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1
_LISTEN, _IGNORE = 1, 2
_ACK: Final = 0
_NLMSG: Final = struct.Struct("=IHHII")
_CN_MSG: Final = struct.Struct("=IIIIHH")


def kernel_checks(proc: str = "/proc", sys: str = "/sys") -> list[tuple[str, Check]]:
    """Return the checks of what the kernel offers."""
    return [
        ("kernel", partial(kernel_version, os.uname().release)),
        ("pidfd", pidfd),
        ("clone3 into a cgroup", clone_into_cgroup),
        ("PSI", partial(pressure, proc)),
        ("proc connector", proc_connector),
        ("clock", partial(clock_source, sys)),
    ]


def process_checks(proc: str = "/proc") -> list[tuple[str, Check]]:
    """Return the checks of what this process may do, and of the limits it has."""
    return [
        ("user", user),
        ("capabilities", partial(capabilities, proc)),
        ("worker user", worker_user),
        ("system call filter", system_calls),
        ("inotify", partial(inotify, proc)),
        ("open files", open_files),
        ("pipes", partial(pipes, proc)),
    ]


def parse_release(release: str) -> tuple[int, int] | None:
    """Return major and minor of a kernel release, such as ``5.10.0-28-amd64``; None where it is no number."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else None


def kernel_version(release: str) -> Finding:
    """Judge the kernel's version."""
    version = parse_release(release)
    if version is None:
        return warn("kernel", f"Linux {release}: the version cannot be read from that")
    if version < OLDEST_KERNEL:
        return fail("kernel", f"Linux {release} is older than 3.10", "upgrade the kernel")
    return ok("kernel", f"Linux {release}")


def pidfd() -> Finding:
    """Try to open a pidfd (Linux 5.3)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, AttributeError) as error:
        return warn(
            "pidfd",
            f"not available ({_reason(error)}); fallback in use: the nursery reports deaths and signals its own"
            " children, which cannot be mistaken before it has reaped them",
            "a kernel of 5.3 or newer has it; a container may be blocking it (seccomp)",
        )
    return ok("pidfd", "available: the end of a worker is known at once")


def clone_into_cgroup() -> Finding:
    """Try whether a worker can be born in its v2 cgroup (clone3, Linux 5.7)."""
    from garrison.supervisor.nursery.fork import why_not

    name = "clone3 into a cgroup"
    if reason := why_not():
        return ok(
            name,
            f"not available ({reason}); fallback in use: a worker waits at a gate until it was moved into its v2"
            " cgroup, and starts about 15 ms later",
        )
    return ok(name, "available: a worker is born in its v2 cgroup, where there is one")


def pressure(proc: str = "/proc") -> Finding:
    """Read the pressure stall information (PSI, Linux 4.20, may be off by default)."""
    missing = []
    for kind in ("cpu", "memory", "io"):
        try:
            with open(f"{proc}/pressure/{kind}", "rb") as file:
                file.read(256)
        except OSError as error:
            missing.append(f"{kind} ({_reason(error)})")
    if missing:
        return warn(
            "PSI",
            f"not available: {', '.join(missing)}; fallback in use: polling of busy time and available memory",
            "on 4.20 or newer boot with `psi=1`",
        )
    return ok("PSI", "cpu, memory and io pressure are available")


def proc_connector(seconds: float = 1.0) -> Finding:
    """Subscribe to process events for a moment and see whether the kernel acknowledges it."""
    name = "proc connector"
    loss = "fork and exec events cannot be had from the kernel, so that short-lived processes are missed"
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    except OSError as error:
        return warn(
            name,
            f"{loss}: {_reason(error)}",
            "run in the host's network namespace, with CONFIG_PROC_EVENTS in the kernel",
        )
    with sock:
        try:
            sock.bind((0, _CN_IDX_PROC))
            sock.send(_subscription(_LISTEN))
            acknowledged = _acknowledged(sock, seconds)
            # Without it an older kernel goes on making events for a listener that is gone.
            sock.send(_subscription(_IGNORE))
        except OSError as error:
            remedy = "run as root, with CAP_NET_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) else ""
            return warn(name, f"{loss}: {_reason(error)}", remedy)
    if not acknowledged:
        return warn(
            name,
            f"{loss}: the kernel does not acknowledge the subscription",
            "run in the host's pid and user namespaces (`docker run --pid=host`), with CONFIG_PROC_EVENTS",
        )
    return ok(name, "process events come from the kernel")


def _subscription(operation: int) -> bytes:
    body = struct.pack("=I", operation)
    message = _CN_MSG.pack(_CN_IDX_PROC, 1, 0, 0, len(body), 0) + body
    return _NLMSG.pack(_NLMSG.size + len(message), 3, 0, 0, os.getpid()) + message


def _acknowledged(sock: socket.socket, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([sock], [], [], left)[0]:
            return False
        try:
            data = sock.recv(4096)
        except OSError as error:
            # A burst of other events; the acknowledgement may still come.
            if error.errno != errno.ENOBUFS:
                raise
            continue
        start = _NLMSG.size + _CN_MSG.size
        # struct proc_event: what (0 is the acknowledgement), cpu, timestamp, error.
        if len(data) >= start + 20 and struct.unpack_from("=I", data, start)[0] == _ACK:
            return bool(struct.unpack_from("=I", data, start + 16)[0] == 0)
    return False


def clock_source(sys: str = "/sys") -> Finding:
    """Say which clock source the kernel uses: a slow one makes each reading of the time a system call."""
    try:
        with open(f"{sys}/devices/system/clocksource/clocksource0/current_clocksource", encoding="ascii") as file:
            source = file.read().strip()
    except OSError as error:
        return ok("clock", f"the clock source is not shown here ({_reason(error)})")
    if source in _SLOW_CLOCKS:
        return warn(
            "clock",
            f"{source}: slow to read, which costs every program CPU time",
            "see `dmesg` for why tsc was given up",
        )
    return ok("clock", source)


def user() -> Finding:
    """Say as whom this runs."""
    uid = os.geteuid()
    if uid == 0:
        return ok("user", "root")
    return warn(
        "user",
        f"uid {uid}, not root: what follows is true for this user, not for an agent of root's",
        "run `sudo garrison doctor`",
    )


def capabilities(proc: str = "/proc") -> Finding:
    """Compare this process's effective capabilities with those that the master needs."""
    with open(f"{proc}/self/status", encoding="ascii", errors="replace") as file:
        found = re.search(r"^CapEff:\s*([0-9a-fA-F]+)$", file.read(), re.MULTILINE)
    if found is None:
        return warn("capabilities", "the kernel does not show them", "")
    return judge_capabilities(int(found[1], 16))


def judge_capabilities(effective: int) -> Finding:
    """Judge a set of effective capabilities, as the bit mask of ``CapEff``. Pure."""
    missing = [(name, purpose) for name, bit, purpose in CAPABILITIES if not effective >> bit & 1]
    if not missing:
        return ok("capabilities", f"all {len(CAPABILITIES)} that the agent needs")
    listed = "; ".join(f"{name}, to {purpose}" for name, purpose in missing)
    return warn(
        "capabilities", f"missing: {listed}", "run as root, or add them (`CapabilityBoundingSet=`, `--cap-add`)"
    )


def worker_user(folder: str = "/etc") -> Finding:
    """Look for the user that workers run as where the settings name none."""
    try:
        account = lookup(WORKER_USER, folder)
    except NoAccountError as error:
        return warn(
            "worker user",
            f"{error}: workers whose settings name none stay the agent's user, without its capabilities",
            f"useradd --system --no-create-home --shell /usr/sbin/nologin {WORKER_USER}; the packages do that",
        )
    if account.uid == 0:
        return warn("worker user", f"{WORKER_USER} is root", "give it a user id of its own")
    return ok("worker user", f"{WORKER_USER} (uid {account.uid})")


def system_calls() -> Finding:
    """Say whether workers can be given a filter of system calls."""
    reason = seccomp.why_not()
    if reason:
        return warn(
            "system call filter",
            f"{reason}: workers may use all system calls",
            "run a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64",
        )
    return ok("system call filter", "seccomp")


def inotify(proc: str = "/proc") -> Finding:
    """Make an inotify instance and read the limits of this user."""
    low = []
    values = []
    for name, least in _MIN_INOTIFY.items():
        with open(f"{proc}/sys/fs/inotify/{name}", encoding="ascii") as file:
            value = int(file.read())
        values.append(f"{name} {value}")
        if value < least:
            low.append(f"fs.inotify.{name}={least}")
    from inotify_simple import INotify

    try:
        INotify().close()
    except OSError as error:
        return fail(
            "inotify",
            f"no instance can be made: {_reason(error)} ({', '.join(values)})",
            "raise fs.inotify.max_user_instances with sysctl; `find /proc/*/fd -lname anon_inode:inotify` shows who has"
            " them",
        )
    if low:
        return warn("inotify", f"low limits: {', '.join(values)}", f"sysctl -w {' '.join(low)}")
    return ok("inotify", ", ".join(values))


def open_files() -> Finding:
    """Look at the limit on open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{_limit(soft)} (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < _MIN_OPEN_FILES:
        return warn("open files", detail, f"raise it to {_MIN_OPEN_FILES}: LimitNOFILE= in the unit, or `ulimit -n`")
    return ok("open files", detail)


def pipes(proc: str = "/proc") -> Finding:
    """Give a pipe the size that the events pipe needs."""
    with open(f"{proc}/sys/fs/pipe-max-size", encoding="ascii") as file:
        most = int(file.read())
    reader, writer = os.pipe()
    try:
        got = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, EVENTS_PIPE_BYTES)
    except OSError as error:
        return warn(
            "pipes",
            f"a pipe of {EVENTS_PIPE_BYTES // 1024} KiB is refused ({_reason(error)}; pipe-max-size {most}): workers"
            " buffer less and drop events sooner",
            f"sysctl -w fs.pipe-max-size={max(most, EVENTS_PIPE_BYTES)} fs.pipe-user-pages-soft=16384",
        )
    finally:
        os.close(reader)
        os.close(writer)
    return ok("pipes", f"{got // 1024} KiB for each worker's events (pipe-max-size {most // 1024} KiB)")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "this Python was built without it"
