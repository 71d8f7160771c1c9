"""Shells and a judge of manual pages, installed or unpacked from Debian's packages."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.debian import unpack

DEBIAN = Path(sys.prefix) / "shells-debian"
"""Where `python -m tests.shells` puts them: beside the other tools of the checkout."""
PACKAGES = ("bash-completion", "fish", "fish-common", "libpcre2-32-0", "mandoc", "zsh", "zsh-common")
PROGRAMS = ("fish", "mandoc", "zsh")


def find(name: str) -> str | None:
    """Return a program's path, or None where there is none."""
    if installed := shutil.which(name):
        return installed
    return next((str(path) for place in ("bin", "usr/bin") if (path := DEBIAN / place / name).is_file()), None)


def missing(name: str) -> str:
    """Return why a test is skipped."""
    return f"needs {name} (apt-get install {name}, or {sys.executable} -m tests.shells)"


def environment() -> dict[str, str]:
    """Return what an unpacked program needs to find its libraries; empty where there are none."""
    libraries = sorted({str(path.parent) for path in DEBIAN.glob("usr/lib/*/lib*.so.*")})
    return {"LD_LIBRARY_PATH": os.pathsep.join(libraries)} if libraries else {}


def zsh_paths() -> tuple[list[str], list[str]]:
    """Return what has to be in zsh's fpath and module_path; empty lists for an installed one, which knows."""
    if shutil.which("zsh"):
        return [], []
    functions = sorted(str(path) for path in DEBIAN.glob("usr/share/zsh/functions/**/") if path.is_dir())
    return functions, [str(path.parent.parent) for path in DEBIAN.glob("usr/lib/*/zsh/*/zsh/zle.so")]


def bash_completion() -> Path | None:
    """Return the file that loads the completions of all programs, or None."""
    paths = (Path("/usr/share/bash-completion/bash_completion"), DEBIAN / "usr/share/bash-completion/bash_completion")
    return next((path for path in paths if path.is_file()), None)


def fetch() -> str:
    """Unpack what is not installed. Returns why that is not possible, or ""."""
    if all(find(name) for name in PROGRAMS) and bash_completion():
        return ""
    if problem := unpack(PACKAGES, DEBIAN):
        return problem
    # fish finds its own functions where its program stands in bin/ of a folder that has share/ and etc/.
    link = DEBIAN / "usr/etc"
    if not link.is_symlink():
        link.symlink_to("../etc")
    return ""


if __name__ == "__main__":
    if problem := fetch():
        sys.stdout.write(f"no shells: {problem}\n")
    else:
        sys.stdout.write("".join(f"{name} is {find(name)}\n" for name in PROGRAMS))
