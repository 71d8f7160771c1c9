"""Real shells on a pseudo-terminal: what would they insert if all that a completion offers were taken?"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

from tests import shells

DEADLINE = 60.0
ALL = "\x18a"
"""Ctrl-X a: in both shells bound to the insertion of everything that is offered."""

_BASH = """\
PS1='ready> '
bind '"\\C-xa": insert-completions'
bind 'set enable-bracketed-paste off'
bind 'set bell-style none'
"""
_ZSH = """\
PS1='ready> '
zstyle ':completion:*' completer _complete
zstyle ':completion:all::::' completer _all_matches _complete
zstyle ':completion:all:*' insert true
autoload -Uz compinit
compinit -u -D
zle -C all complete-word _generic
bindkey -e
bindkey '^Xa' all
"""
# Printed in two parts, so that the echo of what is typed is never taken for it.
_REPLY = "reply() { printf '%s' '@BEG' 'IN@'; printf '<%s>' \"$@\"; printf '%s%s\\n' '@EN' 'D@'; }\n"
# Makes the terminal that of the new session, as a login does.
_ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """An empty home, and the programs of the checkout first in PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"HOME": str(folder), "PATH": path, "TERM": "dumb", "LANG": "C.UTF-8", "INPUTRC": "/dev/null"}
    return own | {"XDG_CONFIG_HOME": str(folder / "config"), "XDG_DATA_HOME": str(folder / "data")} | more


class Interactive:
    """bash or zsh on a terminal, to be used with `with`.

    Args:
        command: What is run.
        env: Its whole environment.
        folder: Its working folder.
    """

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        self._leader, follower = os.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 100, 2000, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *command],
            stdin=follower, stdout=follower, stderr=follower, env=env, cwd=folder, start_new_session=True,
        )  # fmt: skip
        os.close(follower)
        self._seen = ""

    def __enter__(self) -> Self:
        self.until("ready> ")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(DEADLINE)
        os.close(self._leader)

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until the terminal has shown something, and forget it and what came before."""
        end = time.monotonic() + DEADLINE
        while (match := re.search(pattern, self._seen, re.DOTALL)) is None:
            ready, _, _ = select.select([self._leader], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"not seen in {DEADLINE} s: {pattern}; but {self._seen!r}"
            self._seen += os.read(self._leader, 65536).decode(errors="replace")
        self._seen = self._seen[match.end() :]
        return match

    def offered(self, line: str) -> list[str]:
        """Return what stands on the line in place of its last word when all is taken."""
        os.write(self._leader, f"{line}{ALL}\x01reply \r".encode())
        words = re.findall("<([^>]*)>", self.until("@BEGIN@(.*?)@END@.*?ready> ")[1])
        before = shlex.split(line)
        before = before if line.endswith(" ") else before[:-1]
        assert words[: len(before)] == before, words
        return words[len(before) :]


def bash(folder: Path, script: Path, **more: str) -> Interactive:
    """A bash that has read a script."""
    rc = folder / "bashrc"
    rc.write_text(f"source {shlex.quote(str(script))}\n{_REPLY}{_BASH}")
    return Interactive(["bash", "--noprofile", "--rcfile", str(rc), "-i"], environment(folder, **more), folder)


def zsh(folder: Path, completions: Path) -> Interactive:
    """A zsh that finds completions in a folder."""
    functions, modules = shells.zsh_paths()
    places = " ".join(map(shlex.quote, [str(completions), *functions]))
    module_path = f"module_path=({' '.join(map(shlex.quote, modules))})\n" if modules else ""
    (folder / ".zshrc").write_text(f"{module_path}fpath=({places} $fpath)\n{_REPLY}{_ZSH}")
    program = shells.find("zsh")
    assert program is not None
    return Interactive([program, "-d", "-i"], environment(folder, **shells.environment()), folder)


def fish(folder: Path, data: Path, line: str) -> dict[str, str]:
    """Return what a fish that finds completions below a data folder offers for a line, with the explanations."""
    program = shells.find("fish")
    assert program is not None
    done = subprocess.run(
        [program, "-c", f"complete -C {shlex.quote(line)}"],
        capture_output=True, text=True, timeout=DEADLINE, cwd=folder,
        env=environment(folder, XDG_DATA_DIRS=str(data), **shells.environment()),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    pairs = (text.partition("\t") for text in done.stdout.splitlines())
    return {word: explanation for word, _, explanation in pairs}
