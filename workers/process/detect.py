"""The path rules and what a shell is, over facts alone. Pure: no clock, no I/O."""

from __future__ import annotations

import posixpath
import re
from typing import Final, NamedTuple

from garrison.workers.process import rules
from garrison.workers.process.facts import Image
from garrison.workers.process.settings import Config

_SHELL: Final = re.compile(r"-?(?:r?bash|sh|dash|zsh|[mp]?dksh|mksh|ksh|ash|hush|fish|csh|tcsh|yash)(?:-?\d[\d.]*)?")
_INTERPRETER: Final = re.compile(r"(python|pypy|perl|ruby|node|nodejs|php|lua|tclsh|expect)(?:-?\d[\d.]*)?")

# Options that take the next argument; and those whose value is the program, so that there is no script.
_TAKES_VALUE: Final = {
    "python": ("-W", "-X", "-Q"),
    "pypy": ("-W", "-X"),
    "perl": ("-I",),
    "ruby": ("-I", "-r", "-C", "-E"),
    "node": ("-r", "--require", "--import", "--loader"),
    "nodejs": ("-r", "--require", "--import", "--loader"),
    "php": ("-c", "-d", "-z"),
    "lua": ("-l",),
}
_IS_PROGRAM: Final = {
    "python": ("-c", "-m"),
    "pypy": ("-c", "-m"),
    "perl": ("-e", "-E"),
    "ruby": ("-e",),
    "node": ("-e", "-p", "--eval", "--print"),
    "nodejs": ("-e", "-p", "--eval", "--print"),
    "php": ("-r", "-B", "-R", "-a"),
    "lua": ("-e",),
    "expect": ("-c",),
}


class Finding(NamedTuple):
    """A rule that matched, and the path that it matched on."""

    rule: rules.Rule
    path: str


class Policy:
    """A configuration made ready for matching.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._temporary = tuple(path.rstrip("/") + "/" for path in config.temporary_paths)
        self._temporary_allow = config.temporary_allow
        self._hidden_allow = frozenset(config.hidden_allow)
        self._hidden_paths_allow = config.hidden_paths_allow
        self._deleted_allow = config.deleted_allow
        self._memfd_allow = frozenset(config.memfd_allow)
        self._excluded = config.exclude_executables
        self._scripts = config.script_rules
        self._holders = frozenset(config.trusted_holders)
        self._socket_parents = frozenset(config.socket_shell_parents)
        self.deleted_replaced = config.deleted_replaced
        self.loopback = config.loopback_shells

    def excluded(self, image: Image) -> bool:
        """Return whether the exec of this image is not reported."""
        return bool(self._excluded) and covered(image.executable, self._excluded)

    def trusts_holder(self, image: Image | None) -> bool:
        """Return whether a process may serve a shell over pipes or a terminal."""
        return image is not None and not image.deleted and image.executable in self._holders

    def trusts_socket_parent(self, image: Image | None) -> bool:
        """Return whether a process may start a shell on a socket."""
        return image is not None and not image.deleted and image.executable in self._socket_parents

    def temporary(self, path: str) -> bool:
        """Return whether a path is in a temporary folder and not allowed there."""
        return path.startswith(self._temporary) and not covered(path, self._temporary_allow)

    def hidden(self, path: str) -> bool:
        """Return whether a path has a hidden part that is not allowed; a hidden file name never is by its folder."""
        if "/." not in path:
            return False
        *folders, name = path.split("/")
        hit = name.startswith(".") or any(part.startswith(".") and part not in self._hidden_allow for part in folders)
        return hit and not covered(path, self._hidden_paths_allow)

    def judge(self, image: Image) -> list[Finding]:
        """Return the findings on an image. Whether a deleted executable was replaced is for the caller to look up."""
        found: list[Finding] = []
        path = image.executable
        if image.memfd:
            if not self._memfd_allowed(image):
                found.append(Finding(rules.MEMFD, path))
        elif path:
            if image.deleted and not covered(path, self._deleted_allow):
                found.append(Finding(rules.DELETED, path))
            if self.temporary(path):
                found.append(Finding(rules.TEMPORARY, path))
            if self.hidden(path):
                found.append(Finding(rules.HIDDEN, path))
        if self._scripts:
            script = script_of(image)
            if script:
                if self.temporary(script):
                    found.append(Finding(rules.TEMPORARY_SCRIPT, script))
                if self.hidden(script):
                    found.append(Finding(rules.HIDDEN_SCRIPT, script))
        return found

    def _memfd_allowed(self, image: Image) -> bool:
        return image.euid == 0 and image.executable.removeprefix("/memfd:") in self._memfd_allow


def covered(path: str, entries: tuple[str, ...]) -> bool:
    """Return whether a path is one of the entries or below one that ends in a slash."""
    return any(path == entry or (entry.endswith("/") and path.startswith(entry)) for entry in entries)


def base(path: str) -> str:
    """Return the last part of a path."""
    return path[path.rfind("/") + 1 :]


def is_shell(image: Image | None) -> bool:
    """Return whether an image is a shell, by the name of its file or of argument 0, or as an applet of busybox."""
    if image is None:
        return False
    name = base(image.executable)
    if _SHELL.fullmatch(name) is not None:
        return True
    if not image.args:
        return False
    first = base(image.args[0])
    if name == "busybox" and first == "busybox":
        first = image.args[1] if len(image.args) > 1 else ""
    return _SHELL.fullmatch(first) is not None


def reads_stdin(image: Image) -> bool:
    """Return whether a shell takes its commands from standard input: no ``-c`` and no script."""
    args = list(image.args[1:])
    if base(image.executable) == "busybox" and image.args and base(image.args[0]) == "busybox":
        args = args[1:]
    while args:
        arg = args.pop(0)
        if arg in ("--", "-"):
            return not args
        if arg.startswith("--"):
            if arg in ("--rcfile", "--init-file"):
                args[:1] = []
            elif arg == "--command":
                return False
        elif arg[:1] in ("-", "+") and len(arg) > 1:
            if arg[0] == "-" and "c" in arg:
                return False
            if arg[0] == "-" and "s" in arg:
                return True
            if arg[-1] in "oO":
                args[:1] = []
        else:
            return False
    return not image.args_truncated


def script_of(image: Image) -> str:
    """Return the absolute path of the script that an interpreter was started with; empty where there is none."""
    args = image.args
    if len(args) < 2 or not image.executable:
        return ""
    name = base(image.executable)
    kind = _INTERPRETER.fullmatch(name)
    family = kind.group(1) if kind else ""
    shell = not family and is_shell(image)
    if not family and not shell:
        return ""
    values, programs = _TAKES_VALUE.get(family, ()), _IS_PROGRAM.get(family, ())
    index = 2 if name == "busybox" and base(args[0]) == "busybox" else 1
    while index < len(args):
        arg = args[index]
        index += 1
        if arg == "--":
            arg = args[index] if index < len(args) else ""
        elif arg[:1] == "-" or (shell and arg[:1] == "+"):
            if shell and not arg.startswith("--"):
                if "c" in arg or "s" in arg:
                    return ""
                index += arg[-1] in "oO"
            elif arg in programs:
                return ""
            elif arg in values or arg in ("--rcfile", "--init-file"):
                index += 1
            continue
        return _resolve(arg, image.cwd)
    return ""


def _resolve(path: str, cwd: str) -> str:
    if not path:
        return ""
    if not path.startswith("/"):
        if not cwd.startswith("/"):
            return ""
        path = f"{cwd}/{path}"
    return posixpath.normpath(path)
