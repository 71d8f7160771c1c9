"""``python -m garrison.fleet.manual``: writes the manual pages and completions of a package, and docs/man."""

from __future__ import annotations

import argparse
import gzip
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from garrison.fleet.manual import bash, fish, zsh
from garrison.fleet.manual.commandline import master, operator
from garrison.fleet.manual.pages import pages

_ZSH_DEBIAN: Final = "usr/share/zsh/vendor-completions"
_ZSH_OTHERS: Final = "usr/share/zsh/site-functions"
"""Red Hat and SUSE have this folder in zsh's fpath, Debian the other one."""


def documentation() -> dict[str, str]:
    """Return every file below ``docs/``: the pages, without a date."""
    return {f"man/{name}": text for name, text in pages().items()}


def installed(date: str) -> dict[str, bytes]:
    """Return every file of a host, by its path below the root: where man, bash, fish and Debian's zsh look."""
    files = {}
    for name, text in pages(date).items():
        chapter = name.rpartition(".")[2]
        files[f"usr/share/man/man{chapter}/{name}.gz"] = gzip.compress(text.encode(), 9, mtime=0)
    for program in (operator(), master()):
        files[f"usr/share/bash-completion/completions/{program.name}"] = bash.script(program).encode()
        files[f"usr/share/fish/vendor_completions.d/{program.name}.fish"] = fish.script(program).encode()
        files[f"{_ZSH_DEBIAN}/_{program.name}"] = zsh.script(program).encode()
    return files


def install(root: Path, environ: Mapping[str, str]) -> None:
    """Write everything below a root, the staging tree of a package.

    Args:
        root: The folder.
        environ: ``SOURCE_DATE_EPOCH`` in it (seconds) dates the pages; without it they bear none.

    Raises:
        OSError: A file cannot be written.
        ValueError: ``SOURCE_DATE_EPOCH`` is no number of seconds.
    """
    epoch = environ.get("SOURCE_DATE_EPOCH")
    date = "" if epoch is None else datetime.fromtimestamp(int(epoch), UTC).date().isoformat()
    for name, data in installed(date).items():
        _write(root / name, data)
    for path in sorted((root / _ZSH_DEBIAN).glob("_garrison*")):
        link = root / _ZSH_OTHERS / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(path, link.parent))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)


def _outdated(folder: Path) -> list[str]:
    found = []
    for name, text in documentation().items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found.append(str(path))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` compare them; 1 means that one differs from what it is made from."""
    parser = argparse.ArgumentParser(prog="python -m garrison.fleet.manual", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--docs", metavar="FOLDER", type=Path, help="write the pages into man/ below this folder")
    where.add_argument("--check", metavar="FOLDER", type=Path, help="write nothing; exit 1 where --docs would")
    where.add_argument("--root", metavar="FOLDER", type=Path, help="write all where a host has it, below this root")
    options = parser.parse_args(arguments)
    if options.root is not None:
        try:
            install(options.root, os.environ)
        except (OSError, ValueError) as error:
            sys.stderr.write(f"manual pages and completions cannot be written below {options.root}: {error}\n")
            return 1
        return 0
    if options.docs is not None:
        for name, text in documentation().items():
            _write(options.docs / name, text.encode())
        return 0
    outdated = _outdated(options.check)
    for path in outdated:
        sys.stderr.write(f"{path} is out of date: run `make docs`\n")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
