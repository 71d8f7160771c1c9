"""Reading the configuration file: TOML in, checked and complete settings out, or every problem at once."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import TypeVar

import msgspec

from garrison.supervisor.settings.checks import check_budget, check_run_dir, finish
from garrison.supervisor.settings.convert import check_hostname, convert, show
from garrison.supervisor.settings.places import Surroundings, resolve, surroundings
from garrison.supervisor.settings.problems import Collector, ConfigurationError, Problem
from garrison.supervisor.settings.schema import AggregateBudget, Budget, Settings

MAX_FILE_BYTES = 1024 * 1024

S = TypeVar("S", bound=msgspec.Struct)

_POSITION = re.compile(r"^(.*) \(at line (\d+), column (\d+)\)$", re.DOTALL)


def load(path: str | None = None, *, here: Surroundings | None = None) -> Settings:
    """Return the settings of a file, checked, with every automatic value filled in.

    Args:
        path: The file. None: the first of ``Surroundings.candidates`` that is there and that this user may
            read, else the built-in defaults.
        here: What the automatic values depend on; None: this process's own surroundings.

    Raises:
        ConfigurationError: The file cannot be read or is wrong; its problems are all in there.
    """
    here = here or surroundings()
    chosen = path if path is not None else _find(here)
    if chosen is None:
        return loads(b"", "", here)
    data, warnings = _read(chosen)
    settings = loads(data, chosen, here)
    return msgspec.structs.replace(settings, warnings=(*warnings, *settings.warnings))


def loads(data: bytes, source: str, here: Surroundings) -> Settings:
    """Return the settings of a document in TOML. Pure.

    Raises:
        ConfigurationError: It is wrong.
    """
    problems = Collector(source or "built-in defaults")
    document = _parse(data, source)
    settings = convert(Settings, document, "", Settings(), problems)
    settings = finish(settings, problems)
    settings = resolve(settings, here)
    _check_resolved(settings, problems)
    problems.finish()
    return msgspec.structs.replace(settings, source=source, warnings=_judge(settings))


def budget_from(
    document: object, base: Budget, *, aggregate: AggregateBudget | None = None, source: str = "budget"
) -> Budget:
    """Return `base` with a partial budget put over it: for budgets that arrive at run time.

    Args:
        document: A decoded JSON object; units and ranges are those of the file.
        base: Values for what the document does not say.
        aggregate: Caps of all workers together, where the result should be checked against them.
        source: Name of the document for messages, such as its key in the store.

    Raises:
        ConfigurationError: It cannot be used, with every problem.
    """
    problems = Collector(source)
    budget = convert(Budget, document, "", base, problems)
    check_budget(budget, "", problems, aggregate)
    problems.finish()
    return budget


def aggregate_from(document: object, base: AggregateBudget, *, source: str = "budget") -> AggregateBudget:
    """Return `base` with a partial budget of all workers put over it, as `budget_from` does for one.

    Raises:
        ConfigurationError: It cannot be used, with every problem.
    """
    problems = Collector(source)
    budget = convert(AggregateBudget, document, "", base, problems)
    problems.finish()
    return budget


def _find(here: Surroundings) -> str | None:
    own, *others = here.candidates
    if os.path.lexists(own):
        return own  # even if it cannot be read: to run without it would not be what its owner expects
    return next((other for other in others if os.access(other, os.R_OK)), None)


def _read(path: str) -> tuple[bytes, tuple[str, ...]]:
    """Return a file's content and warnings about who may write it."""
    try:
        # Non-blocking, so that a FIFO under this name cannot hang the start.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise _file_error(path, "is a folder", "Name the file itself")
        if not stat.S_ISREG(found.st_mode):
            raise _file_error(path, "is no regular file", "Name a file on disk")
        data = bytearray()
        while len(data) <= MAX_FILE_BYTES and (chunk := os.read(fd, MAX_FILE_BYTES + 1 - len(data))):
            data += chunk
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise _file_error(path, f"is larger than {MAX_FILE_BYTES} bytes", "A configuration is never that large")
    return bytes(data), _warn_of_writers(path, found)


def _unreadable(path: str, error: OSError) -> ConfigurationError:
    remedies = {
        errno.ENOENT: "Create it, or leave --config out to use the default file",
        errno.EACCES: "Run as root, or give this user the right to read it and the folders above it",
        errno.ENOTDIR: "A part of the path is no folder",
        errno.ELOOP: "The path has a loop of symbolic links",
    }
    what = "does not exist" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror}"
    return _file_error(path, what, remedies.get(error.errno or 0, ""))


def _file_error(path: str, what: str, remedy: str = "") -> ConfigurationError:
    return ConfigurationError([Problem(source=path, key="", what=what, remedy=remedy)])


def _warn_of_writers(path: str, found: os.stat_result) -> tuple[str, ...]:
    """Name who else can change the file and so decide what the agent, perhaps as root, runs."""
    warnings = []
    folder = os.path.dirname(os.path.realpath(path)) or "/"
    try:
        above = os.stat(folder)
    except OSError:
        above = None  # the file itself could be read, so this is a race with its removal; nothing to warn of
    for place, status in ((path, found), (folder, above)):
        if status is None:
            continue
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_uid not in (0, os.geteuid()):
            warnings.append(
                f"{place} belongs to user {status.st_uid}, who decides with it what the agent runs; chown it"
            )
        elif status.st_mode & 0o022 and not sticky:
            warnings.append(
                f"{place} can be changed by others (mode {stat.S_IMODE(status.st_mode):04o}), who decide with it "
                f"what the agent runs; chmod go-w {place}"
            )
    return tuple(warnings)


def _parse(data: bytes, source: str) -> dict[str, object]:
    import tomllib  # not needed by a program that runs on defaults only, nor by `budget_from`

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"line {line} is not UTF-8 (byte 0x{data[error.start]:02x})"
        raise _file_error(source, what, "Save the file as UTF-8") from error
    if text.startswith("\ufeff"):
        raise _file_error(source, "starts with a byte order mark", "Save the file as UTF-8 without one")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _file_error(source, _where(str(error))) from error
    except (RecursionError, ValueError) as error:
        # A parser that recurses and Python's limit on the digits of an integer: neither is a TOMLDecodeError.
        reason = "values are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _file_error(source, f"is no usable TOML: {reason}") from None


def _where(text: str) -> str:
    match = _POSITION.match(text)
    if match is None:
        return f"is no TOML: {text}"
    return f"line {match.group(2)}, column {match.group(3)}: {match.group(1)}"


def _check_resolved(settings: Settings, problems: Collector) -> None:
    if not problems.failed("agent.run_dir"):
        check_run_dir(settings.agent.run_dir, problems)
    if problems.failed("agent.hostname"):
        return
    try:
        check_hostname(settings.agent.hostname)
    except ValueError as error:
        problems.add(
            "agent.hostname", f"is automatically {show(settings.agent.hostname)}; {error}", "Set agent.hostname"
        )


def _judge(settings: Settings) -> tuple[str, ...]:
    """Return warnings about settings that are allowed and probably not meant."""
    warnings = []
    if settings.agent.hostname in ("localhost", "localhost.localdomain", "(none)"):
        warnings.append(
            f"this host is called {settings.agent.hostname!r}, as others may be; "
            "set agent.hostname to a name that no other host has"
        )
    if not settings.workers:
        warnings.append("[workers] is empty: no worker will ever run here")
    return tuple(warnings)
