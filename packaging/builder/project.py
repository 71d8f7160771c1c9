"""Installs the project and its locked dependencies into the staged interpreter."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from pathlib import Path

from builder.run import BuildError, run

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "supervisor", "workers", "ipc", "fleet")
"""All that the wheel is made from. Built from a copy: what an earlier build left beside them goes in nowhere."""

SDIST_ONLY = ("cgroupspy",)
"""Dependencies that are published without a wheel: built here, by the locked setuptools of this environment."""

USELESS = (
    # Lists and notes of the installer, with the paths of this machine
    "*.dist-info/RECORD",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
    "*.dist-info/direct_url.json",
    "*.dist-info/uv_*.json",
    "*.dist-info/top_level.txt",
    # For those who compile or type-check against it
    "*.pyi",
    "*.pyx",
    "*.c",
    "*.h",
    "*/py.typed",
)

_PIP: tuple[str | Path, ...] = (sys.executable, "-m", "pip", "--quiet", "--no-input")


def epoch(checkout: Path) -> int:
    """Return the time that stands in everything made: SOURCE_DATE_EPOCH, else that of the last commit.

    Raises:
        BuildError: There is neither.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given:
        if not given.isdigit():
            raise BuildError(f"SOURCE_DATE_EPOCH={given!r} is no number of seconds since 1970")
        return int(given)
    try:
        told = subprocess.run(
            ["git", "-C", str(checkout), "log", "-1", "--format=%ct"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(
            f"{checkout} has no git history to take the time from; set SOURCE_DATE_EPOCH to seconds since 1970"
        ) from error
    return int(told)


def build_wheel(checkout: Path, work: Path, env: dict[str, str]) -> Path:
    """Build the project's wheel from a clean copy of its sources and return it.

    Raises:
        BuildError: The build failed.
    """
    copy = work / "source"
    copy.mkdir()
    for name in SOURCES:
        if (checkout / name).is_dir():
            shutil.copytree(checkout / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(checkout / name, copy / name)
    wheels = work / "wheel"
    run([*_PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, copy], env)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def install(requirements: Path, wheel: Path, into: Path, env: dict[str, str]) -> None:
    """Install the locked dependencies, every file checked against its hash, and the project.

    Raises:
        BuildError: One cannot be had or has another hash.
    """
    target = (*_PIP, "install", "--no-deps", "--no-compile", "--root-user-action", "ignore", "--target", into)
    run(
        [
            *target,
            "--require-hashes",
            *("--only-binary", ":all:", "--no-binary", ",".join(SDIST_ONLY), "--no-build-isolation"),
            *("-r", requirements),
        ],
        env,
    )
    run([*target, wheel], env)
    # Their scripts start with the path of this machine's interpreter.
    shutil.rmtree(into / "bin", ignore_errors=True)
    for path in sorted(into.rglob("*")):
        relative = str(path.relative_to(into))
        if path.is_file() and any(fnmatch.fnmatchcase(relative, pattern) for pattern in USELESS):
            path.unlink()


def install_tools(requirements: Path, into: Path, env: dict[str, str]) -> None:
    """Install what the build itself needs into a folder.

    Raises:
        BuildError: One cannot be had or has another hash.
    """
    run(
        [
            *(*_PIP, "install", "--no-deps", "--no-compile", "--root-user-action", "ignore", "--target", into),
            *("--require-hashes", "--only-binary", ":all:", "-r", requirements),
        ],
        env,
    )
