"""ELF files: what they need, where they find it, and which C library they can run on."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from builder.run import BuildError, run

LIBC = re.compile(r"^(ld-linux.*|linux-vdso|(libc|libm|libdl|libpthread|librt|libutil|libresolv))\.so")
"""The parts of glibc. They belong to the host's kernel interface, name service and locale: never bundled."""

_RESOLVED = re.compile(r"^\s*(\S+) => (\S+) \(0x[0-9a-f]+\)$")
_MISSING = re.compile(r"^\s*(\S+) => not found$")
_SYMBOL = re.compile(r"\(?GLIBC_(\d+(?:\.\d+)+)\)?\s+(\S+)$")

Version = tuple[int, ...]


def elf_files(top: Path) -> list[Path]:
    """Return every ELF file below a folder, sorted; symbolic links are left out."""
    found = []
    for folder, _, names in os.walk(top):
        for name in names:
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    found.append(path)
    return sorted(found)


def libraries(path: Path, env: dict[str, str]) -> dict[str, Path]:
    """Return the shared libraries that the loader takes for a file, transitively, without glibc's.

    Raises:
        BuildError: One is not found.
    """
    found: dict[str, Path] = {}
    # 1: ldd's word for a file that is linked to nothing.
    for line in run(["ldd", path], env, accept=1).splitlines():
        if missing := _MISSING.match(line):
            raise BuildError(f"{path} needs {missing[1]}, which this machine does not have")
        if (resolved := _RESOLVED.match(line)) and not LIBC.match(resolved[1]):
            found[resolved[1]] = Path(resolved[2])
    return found


def gather(files: Iterable[Path], into: Path, env: dict[str, str]) -> dict[str, Path]:
    """Copy all libraries that files need, other than glibc, into one folder.

    Returns:
        Where each came from, by the name under which it is needed.
    """
    origins: dict[str, Path] = {}
    for path in files:
        for name, source in libraries(path, env).items():
            if source.is_relative_to(path.parent) or source.is_relative_to(into):
                continue  # a wheel brought its own
            if origins.setdefault(name, source) != source:
                raise BuildError(f"{name} is needed from two places: {origins[name]} and {source}")
    for name, source in sorted(origins.items()):
        shutil.copyfile(source, into / name)
        (into / name).chmod(0o755)
    return origins


def set_search_path(path: Path, libs: Path, patchelf: Path, env: dict[str, str]) -> None:
    """Make a file find its libraries beside itself, wherever the tree stands.

    DT_RPATH and not DT_RUNPATH: the latter comes after LD_LIBRARY_PATH, and what an operator has set for some
    database client must not give the agent another OpenSSL.
    """
    relative = os.path.relpath(libs, path.parent)
    search = "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}"
    run([patchelf, "--force-rpath", "--set-rpath", search, path], env)


def verify_closed(files: Iterable[Path], top: Path, env: dict[str, str]) -> int:
    """Check with the loader itself that nothing but glibc comes from outside a folder.

    Returns:
        How many files were looked at.

    Raises:
        BuildError: It names every file and what it takes from elsewhere.
    """
    # A library path that would win over RUNPATH shows whether the search path is the kind that is not fooled.
    env = {**env, "LD_LIBRARY_PATH": "/usr/lib:/lib/x86_64-linux-gnu:/lib/aarch64-linux-gnu:/usr/lib64"}
    outside = []
    count = 0
    for path in files:
        count += 1
        for name, source in libraries(path, env).items():
            if not source.resolve().is_relative_to(top.resolve()):
                outside.append(f"{path.relative_to(top)} takes {name} from {source}")
    if outside:
        raise BuildError("not self-contained: " + "; ".join(outside))
    return count


@dataclass(frozen=True, slots=True)
class Floor:
    """The oldest glibc that files run on.

    Attributes:
        version: Such as ``(2, 35)``.
        decided_by: Which files and symbols ask for it.
    """

    version: Version
    decided_by: tuple[str, ...]

    @property
    def text(self) -> str:
        """The version as it is written: ``2.35``."""
        return ".".join(str(part) for part in self.version)


def parse_floor(dump: str) -> tuple[Version, frozenset[str]]:
    """Return the newest glibc version in an ``objdump -T``, and the symbols that ask for it. Pure."""
    newest: Version = (0,)
    symbols: set[str] = set()
    for line in dump.splitlines():
        if "*UND*" not in line or not (match := _SYMBOL.search(line)):
            continue
        version = tuple(int(part) for part in match[1].split("."))
        if version > newest:
            newest, symbols = version, set()
        if version == newest:
            symbols.add(match[2])
    return newest, frozenset(symbols)


def glibc_floor(files: Iterable[Path], top: Path, env: dict[str, str]) -> Floor:
    """Return the oldest glibc that has every symbol that the files take from it."""
    floors = {path: parse_floor(run(["objdump", "-T", path], env)) for path in files}
    newest = max((version for version, _ in floors.values()), default=(0,))
    deciding = tuple(
        f"{path.relative_to(top)} ({', '.join(sorted(symbols)[:4])})"
        for path, (version, symbols) in sorted(floors.items())
        if version == newest
    )
    return Floor(newest, deciding)
