"""Runs the tools of the build, each with the same small environment whoever calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PASSED = ("HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
"""Beside pip's own ``PIP_*``: what a client needs to reach an index from inside a company."""

PACKAGE_OF = {
    "dpkg-deb": "dpkg",
    "git": "git",
    "ldd": "libc-bin",
    "objdump": "binutils",
    "rpmbuild": "rpm",
    "strip": "binutils",
}

TOOLS = ("dpkg-deb", "ldd", "objdump", "rpmbuild", "strip")
"""What every build needs."""


class BuildError(Exception):
    """The package cannot be built; the text says why and what to do."""


def environment(epoch: int) -> dict[str, str]:
    """Return the environment of every tool.

    Args:
        epoch: The time that stands in everything made, in seconds since 1970.
    """
    passed = {name: os.environ[name] for name in os.environ if name in _PASSED or name.startswith("PIP_")}
    return {
        **passed,
        "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(epoch),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # An old pip without the package `wheel` would run setup.py itself and leave an egg-info that lists its paths.
        "PIP_USE_PEP517": "1",
    }


def require(*tools: str) -> None:
    """Check that tools are there.

    Raises:
        BuildError: It names all that are missing and where they come from.
    """
    missing = [tool for tool in tools if shutil.which(tool, path=environment(0)["PATH"]) is None]
    if missing:
        packages = " ".join(sorted({PACKAGE_OF.get(tool, tool) for tool in missing}))
        raise BuildError(f"missing: {', '.join(missing)}; on Debian: apt-get install {packages}")


def run(command: Sequence[str | Path], env: dict[str, str], cwd: Path | None = None, *, accept: int = 0) -> str:
    """Run a tool and return what it printed.

    Args:
        command: Program and arguments.
        env: From `environment`.
        cwd: Where to run it.
        accept: One more exit status that is no failure.

    Raises:
        BuildError: It failed; the text holds its output.
    """
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode not in (0, accept):
        line = " ".join(str(part) for part in command)
        raise BuildError(f"failed with status {done.returncode}: {line}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def say(text: str) -> None:
    """Tell how far the build is."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def owner_of(path: Path, env: dict[str, str]) -> str:
    """Return the Debian package that has a file of the building machine; empty where none has."""
    if shutil.which("dpkg", path=env["PATH"]) is None:
        return ""
    names = {path, path.resolve()}
    names |= {Path("/", *name.parts[2:]) for name in names if name.is_relative_to("/usr")}
    for name in sorted(names):
        # 1: no package has a file of this name.
        if owner := run(["dpkg", "-S", name], env, accept=1).partition(":")[0]:
            return owner
    return ""
