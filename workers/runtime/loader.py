"""The loader: from a module's spec to its class."""

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Sequence
from typing import Final

from garrison.ipc.rights import CAPABILITIES, SYSTEM_CALLS
from garrison.workers.runtime.module import Module

MAX_FILE_BYTES: Final = 1024 * 1024
_BUILTINS: Final = ("process", "files")
_PACKAGE: Final = "garrison.workers"


Loaded = tuple[dict[str, type[Module]], dict[str, "ModuleLoadError"]]
"""Classes and failures by module name."""


class ModuleLoadError(Exception):
    """A module cannot be loaded. The text says which, why, and what to do; nothing of it runs."""


def builtins() -> tuple[str, ...]:
    """Return the names of the modules that come with the agent."""
    return _BUILTINS


def load(name: str, spec: str) -> type[Module]:
    """Return a module's class.

    Args:
        name: The module's name, for errors.
        spec: A built-in's name, ``package.module:Class``, or ``/absolute/file.py:Class``. A file must belong to
            root or to the effective user, and neither it nor a directory above it may be writable by others.

    Raises:
        ModuleLoadError: There is no such thing, it is not safe to load, it fails when imported, or it is no
            `Module`.
    """
    where, colon, attribute = spec.rpartition(":")
    if not colon:
        if spec not in _BUILTINS:
            raise ModuleLoadError(
                f"module {name}: there is no built-in module {spec!r}, only {', '.join(_BUILTINS)}; "
                "others are given as package.module:Class or /path/file.py:Class"
            )
        where, attribute = f"{_PACKAGE}.{spec}", "MODULE"
    if not attribute.isidentifier() or not where:
        raise ModuleLoadError(f"module {name}: {spec!r} is neither package.module:Class nor /path/file.py:Class")
    try:
        found = getattr(_import(name, where), attribute)
    except ModuleLoadError:
        raise
    except AttributeError as error:
        raise ModuleLoadError(f"module {name}: there is no {attribute} in {where} ({error})") from error
    # Importing runs the author's code, which may raise anything, and sys.exit() too.
    except (Exception, SystemExit) as error:
        raise ModuleLoadError(f"module {name}: importing {where} failed: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Module)):
        raise ModuleLoadError(f"module {name}: {spec} is no class derived from garrison.workers.runtime.module.Module")
    _check_rights(name, found)
    return found


def load_all(specs: Sequence[tuple[str, str]]) -> Loaded:
    """Load several modules; return the classes and the failures, by module name."""
    kinds: dict[str, type[Module]] = {}
    failures: dict[str, ModuleLoadError] = {}
    for name, spec in specs:
        try:
            kinds[name] = load(name, spec)
        except ModuleLoadError as error:
            failures[name] = error
    return kinds, failures


def _check_rights(name: str, kind: type[Module]) -> None:
    asked: object = kind.capabilities
    if not isinstance(asked, tuple) or any(word not in CAPABILITIES for word in asked):
        raise ModuleLoadError(
            f"module {name}: its capabilities are {asked!r}; they are a tuple of names as in capabilities(7), in lower "
            'case and without the CAP_: ("net_raw",)'
        )
    if kind.system_calls not in SYSTEM_CALLS:
        raise ModuleLoadError(
            f"module {name}: its system_calls are {kind.system_calls!r}; there are {', '.join(SYSTEM_CALLS)}"
        )


def _import(name: str, where: str) -> object:
    if "/" not in where and not where.endswith(".py"):
        return importlib.import_module(where)
    if not os.path.isabs(where):
        raise ModuleLoadError(f"module {name}: the file {where!r} must be given by its absolute path")
    path = os.path.realpath(where)
    source = _read_checked(name, path)
    return _execute(f"garrison_module_{os.fsencode(path).hex()}", path, source)


def _read_checked(name: str, path: str) -> bytes:
    """Return a file's content, checked on the very descriptor that is read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ModuleLoadError(f"module {name}: the file {path} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ModuleLoadError(f"module {name}: {path} is no regular file")
        _check_owner(name, path, status)
        directory = os.path.dirname(path)
        while True:
            _check_owner(name, directory, os.stat(directory))
            if directory == os.path.dirname(directory):
                break
            directory = os.path.dirname(directory)
        if status.st_size > MAX_FILE_BYTES:
            raise ModuleLoadError(f"module {name}: {path} is larger than {MAX_FILE_BYTES} bytes")
        with os.fdopen(os.dup(fd), "rb") as file:
            return file.read(MAX_FILE_BYTES)
    finally:
        os.close(fd)


def _check_owner(name: str, path: str, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ModuleLoadError(
            f"module {name}: {path} belongs to uid {status.st_uid}; code is loaded only from what belongs to root "
            f"or to uid {os.geteuid()}: chown it"
        )
    # In a sticky directory (/tmp) others cannot replace what is ours.
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise ModuleLoadError(
            f"module {name}: {path} is writable by its group or by everybody "
            f"(mode {stat.S_IMODE(status.st_mode):04o}): chmod go-w it"
        )


def _execute(module_name: str, path: str, source: bytes) -> object:
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    class CheckedLoader(SourceFileLoader):
        """Compiles what was checked: reads neither the path again nor a cached bytecode file beside it."""

        def get_data(self, path: str) -> bytes:
            return source

        def path_stats(self, path: str) -> dict[str, float]:
            raise OSError("no bytecode cache is used")

    loaded = sys.modules.get(module_name)
    if loaded is not None:
        return loaded
    spec = spec_from_file_location(module_name, path, loader=CheckedLoader(module_name, path))
    if spec is None or spec.loader is None:
        raise ImportError(f"no loader for {path}")
    module = module_from_spec(spec)
    sys.modules[module_name] = module  # msgspec looks up the types of a Config through it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
