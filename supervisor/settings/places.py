"""Where things are on this host: what the automatic settings become, and making folders."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

import msgspec

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings.schema import Settings


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What the automatic settings depend on; `surroundings` reads it, a test makes it up.

    Attributes:
        root: Whether the agent runs as root and so uses the system's folders.
        hostname: The machine's host name.
        home: The user's home folder.
        environ: The environment, for the XDG variables.
    """

    root: bool
    hostname: str
    home: str
    environ: Mapping[str, str]

    def user_folder(self, variable: str, *below_home: str) -> str:
        """Return an XDG base folder. As that specification says, a relative one counts as not set."""
        given = self.environ.get(variable, "")
        return given if given.startswith("/") else os.path.join(self.home, *below_home)

    @property
    def config_dir(self) -> str:
        """The folder of the configuration file."""
        return (
            "/etc/garrison" if self.root else os.path.join(self.user_folder("XDG_CONFIG_HOME", ".config"), "garrison")
        )

    @property
    def candidates(self) -> tuple[str, ...]:
        """Where the configuration file is looked for when none is named; the first that is there is used."""
        own = os.path.join(self.config_dir, "garrison.toml")
        return (own,) if self.root else (own, "/etc/garrison/garrison.toml")


def surroundings() -> Surroundings:
    """Read this process's surroundings."""
    return Surroundings(
        root=os.geteuid() == 0, hostname=os.uname().nodename, home=os.path.expanduser("~"), environ=os.environ
    )


def resolve(settings: Settings, here: Surroundings) -> Settings:
    """Return the settings with every automatic (empty) value filled in. Pure."""
    agent = settings.agent
    if here.root:
        state, run, log = "/var/lib/garrison", "/run/garrison", "/var/log/garrison"
        state_dir = agent.state_dir or state
    else:
        state_dir = agent.state_dir or os.path.join(here.user_folder("XDG_STATE_HOME", ".local", "state"), "garrison")
        runtime = here.environ.get("XDG_RUNTIME_DIR", "")
        run = os.path.join(
            runtime if runtime.startswith("/") else state_dir, "garrison" if runtime[:1] == "/" else "run"
        )
        log = os.path.join(state_dir, "log")
    agent = msgspec.structs.replace(
        agent,
        hostname=agent.hostname or here.hostname,
        state_dir=state_dir,
        run_dir=agent.run_dir or run,
        log_dir=agent.log_dir or log,
        killswitch_file=agent.killswitch_file or os.path.join(here.config_dir, "killswitch"),
    )
    directory = msgspec.structs.replace(
        settings.store.directory, path=settings.store.directory.path or os.path.join(here.config_dir, "store")
    )
    file = msgspec.structs.replace(
        settings.sink.file, path=settings.sink.file.path or os.path.join(agent.log_dir, "events.ndjson")
    )
    spool = msgspec.structs.replace(
        settings.spool, path=settings.spool.path or os.path.join(agent.state_dir, "spool.sqlite")
    )
    return msgspec.structs.replace(
        settings,
        agent=agent,
        spool=spool,
        store=msgspec.structs.replace(settings.store, directory=directory),
        sink=msgspec.structs.replace(settings.sink, file=file),
    )


class ReadableOSError(OSError):
    """An operating system error whose text is a sentence for people, without the number in front."""

    def __str__(self) -> str:
        return str(self.strerror)


class FolderError(ReadableOSError):
    """A folder that the agent needs cannot be made or is something else; the text names it and the remedy."""

    exit_code = ExitCode.OS_REFUSED


_REMEDIES = {
    errno.EROFS: "the file system is read-only; choose a folder on another one",
    errno.EACCES: "run the agent as root, or choose a folder that this user may write; root itself may write only what "
    "belongs to root, because the agent puts CAP_DAC_OVERRIDE away",
    errno.EPERM: "run the agent as root, or choose a folder that this user may write",
    errno.ENOSPC: "the disk is full; make room, or choose a folder on another one",
    errno.EDQUOT: "the user's disk quota is used up; make room, or choose another folder",
    errno.ENOTDIR: "a part of the path is no folder; move that file away, or choose another folder",
    errno.ELOOP: "the path has a loop of symbolic links; correct it, or choose another folder",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter one",
}


def remedy(error: OSError) -> str:
    """Return what the operator can do about a failed file operation; a general text for unusual errors."""
    return _REMEDIES.get(error.errno or 0, "see the message of the operating system")


def make_folder(path: str, mode: int, setting: str = "") -> None:
    """Make a folder and those above it where they are missing; those that are there are left as they are.

    Args:
        path: Absolute path.
        mode: Permission bits of what is made, whatever the umask: 0o755 or 0o700.
        setting: The setting that named it, for the message.

    Raises:
        FolderError: It cannot be made, or is there and is no folder.
    """
    named = f" ({setting})" if setting else ""
    missing = []
    part = path.rstrip("/") or "/"
    while not os.path.lexists(part):
        missing.append(part)
        part = os.path.dirname(part)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
            os.chmod(folder, mode)
        except FileExistsError:
            continue  # somebody was faster; the check below judges it
        except OSError as error:
            text = f"cannot make the folder {folder}{named}: {error.strerror}; {remedy(error)}"
            raise FolderError(error.errno, text) from error
    try:
        found = os.stat(path)
    except OSError as error:
        text = f"cannot use the folder {path}{named}: {error.strerror}; {remedy(error)}"
        raise FolderError(error.errno, text) from error
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(errno.ENOTDIR, f"{path}{named} is no folder; move it away, or choose another path")
