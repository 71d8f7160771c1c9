"""The changelog and the licences of everything that a package has inside."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from builder import interpreter
from builder.run import BuildError, owner_of, say


def stage(root: Path, checkout: Path, base: interpreter.Facts, libraries: dict[str, Path], env: dict[str, str]) -> None:
    """Put the changelog and the licences of everything inside into the tree.

    Those of the dependencies stay where their wheels have them, in ``*.dist-info``.
    """
    folder = root / "usr/share/doc/garrison"
    folder.mkdir(parents=True)
    changes = (checkout / "CHANGELOG.md").read_bytes()
    (folder / "changelog.gz").write_bytes(gzip.compress(changes, 9, mtime=0))
    lines = [
        "Garrison is licensed under the Apache License 2.0; its text is in LICENSE beside this file.",
        "",
        "Inside /opt/garrison are also, under licences of their own:",
        f"- CPython {base.version}: licenses/python",
    ]
    shutil.copyfile(checkout / "LICENSE", folder / "LICENSE")
    licenses = folder / "licenses"
    licenses.mkdir()
    own = (base.stdlib / "LICENSE.txt", base.stdlib / "LICENSE")
    found = next((path for path in own if path.is_file()), None)
    if found is None:
        raise BuildError(f"CPython's licence is not in {base.stdlib}; it has to be in the package")
    shutil.copyfile(found, licenses / "python")
    for name, source in sorted(libraries.items()):
        text = _licence_of(source, env)
        if text is not None:
            shutil.copyfile(text, licenses / name)
            lines.append(f"- {name}: licenses/{name}")
        elif source.name.startswith("libpython"):
            continue
        else:
            say(f"warning: no licence text found for {source}: add it before the package is given to others")
    lines += ["- the Python packages: *.dist-info in the library folder", ""]
    (folder / "copyright").write_text("\n".join(lines), encoding="utf-8")


def _licence_of(library: Path, env: dict[str, str]) -> Path | None:
    owner = owner_of(library, env)
    text = Path("/usr/share/doc", owner, "copyright")
    return text if owner and text.is_file() else None
