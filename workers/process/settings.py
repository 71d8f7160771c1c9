"""The settings of the process module; the table in docs/process-worker.md is made from these."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(min_length=1, max_length=256)]
AbsolutePath = Annotated[str, Meta(pattern="^/", max_length=512)]
Paths = Annotated[tuple[AbsolutePath, ...], Meta(max_length=256)]
Names = Annotated[tuple[Text, ...], Meta(max_length=256)]

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run/shm", "/run/user")  # noqa: S108 - these are looked for, not used

HIDDEN_ALLOWED = (
    *(".ansible", ".asdf", ".build-id", ".bun", ".cabal", ".cache", ".cargo", ".conda", ".config", ".cursor-server"),
    *(".deno", ".dotnet", ".fnm", ".gem", ".ghcup", ".git", ".goenv", ".gradle", ".jenv", ".krew", ".linuxbrew"),
    *(".local", ".m2", ".nix-profile", ".nodenv", ".nox", ".npm", ".npm-global", ".nvm", ".opam", ".pnpm", ".pyenv"),
    *(".rbenv", ".rustup", ".rvm", ".sdkman", ".snapshots", ".stack", ".terraform", ".terraform.d", ".tfenv", ".tox"),
    *(".venv", ".virtualenvs", ".volta", ".vscode", ".vscode-server", ".yarn"),
)

TRUSTED_HOLDERS = (
    "/usr/sbin/sshd",
    "/usr/lib/openssh/sshd-session",
    "/usr/lib/openssh/sshd-auth",
    "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
    "/usr/lib/ssh/sshd-session",
    "/usr/sbin/dropbear",
    "/usr/bin/mosh-server",
    "/usr/sbin/in.telnetd",
    "/usr/sbin/telnetd",
    "/usr/sbin/in.rshd",
    "/usr/sbin/in.rlogind",
    "/usr/bin/dockerd",
    "/usr/bin/containerd",
    "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/conmon",
    "/usr/bin/crio",
    "/usr/bin/kubelet",
    "/usr/local/bin/k3s",
)

SOCKET_PARENTS = ("/usr/sbin/inetd", "/usr/sbin/xinetd")

MEMFD_ALLOWED = ("runc_cloned:/proc/self/exe", "runc_cloned:runc-dmz", "crun_cloned:/proc/self/exe", "crun_cloned")


class Config(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Settings of the process module; only those that differ from the default need be given."""

    source: Annotated[
        Literal["auto", "connector", "poll"],
        Meta(
            description="Where processes are learnt from. `auto`: the proc connector, else polling; `connector`: "
            "fail where it is not there; `poll`: only look at /proc."
        ),
    ] = "auto"
    poll_seconds: Annotated[
        float, Meta(ge=0.2, le=3600, description="Seconds between two looks at /proc while polling.")
    ] = 1.0
    receive_buffer_bytes: Annotated[
        int, Meta(ge=4096, le=64 * 1024 * 1024, description="Receive buffer of the proc connector, bytes.")
    ] = 2 * 1024 * 1024
    cache_size: Annotated[int, Meta(ge=64, le=65536, description="Processes whose facts are remembered.")] = 4096
    exec_events: Annotated[
        bool, Meta(description="Report each exec. Without it only alerts and the worker's own state leave.")
    ] = True
    fork_events: Annotated[bool, Meta(description="Report forks of processes too.")] = False
    exit_events: Annotated[bool, Meta(description="Report exits of processes too.")] = False
    exclude_executables: Annotated[
        Paths,
        Meta(
            description="Executables whose exec is not reported; a path that ends in `/` covers all below it. "
            "Alerts still come."
        ),
    ] = ()
    temporary_paths: Annotated[Paths, Meta(description="Folders from which nothing should be executed.")] = TEMPORARY
    temporary_allow: Annotated[
        Paths,
        Meta(
            description="Executables or scripts in those folders that are fine; a path that ends in `/` covers all "
            "below it."
        ),
    ] = ()
    hidden_allow: Annotated[Names, Meta(description="Hidden folders in which executables are normal, by name.")] = (
        HIDDEN_ALLOWED
    )
    hidden_paths_allow: Annotated[
        Paths,
        Meta(description="Hidden executables that are fine; a path that ends in `/` covers all below it."),
    ] = ()
    script_rules: Annotated[
        bool, Meta(description="Apply the path rules to the script that an interpreter was started with.")
    ] = True
    deleted_allow: Annotated[
        Paths,
        Meta(
            description="Executables that may be deleted while they run; a path that ends in `/` covers all below it."
        ),
    ] = ()
    deleted_replaced: Annotated[
        bool,
        Meta(
            description="Also alert where another file is now at the deleted executable's path, as after each "
            "package upgrade."
        ),
    ] = False
    memfd_allow: Annotated[
        Names,
        Meta(description="Names of memory files that user 0 may execute: container runtimes clone themselves."),
    ] = MEMFD_ALLOWED
    trusted_holders: Annotated[
        Paths,
        Meta(description="Executables that may serve a shell over the network through pipes or a terminal."),
    ] = TRUSTED_HOLDERS
    socket_shell_parents: Annotated[
        Paths, Meta(description="Executables that may start a shell with a network socket as its input or output.")
    ] = SOCKET_PARENTS
    loopback_shells: Annotated[
        bool, Meta(description="Alert for a shell on a socket also where both ends are on this host.")
    ] = True
    repeat_seconds: Annotated[
        float,
        Meta(ge=1, le=86400, description="Within so many seconds the same finding is counted instead of sent again."),
    ] = 60.0
    alerts_per_minute: Annotated[
        float,
        Meta(
            ge=1,
            le=6000,
            description="Most alerts a minute, with a burst of as many; for high severities a second "
            "allowance of the same size.",
        ),
    ] = 60.0
    stats_seconds: Annotated[
        float, Meta(ge=0, le=86400, description="Seconds between two metric events with the counters; 0: none.")
    ] = 300.0
