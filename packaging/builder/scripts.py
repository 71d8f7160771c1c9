"""Maintainer scripts: each is self-contained, since it runs before the package's files are there or after they went."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from builder.run import BuildError

COMMON = Path(__file__).resolve().parent.parent / "scripts"
"""Folder of what the scripts of both families include."""

_INCLUDE = "#include "
_MARK = re.compile(r"@([A-Z_]+)@")


def render(script: Path, values: Mapping[str, str]) -> str:
    """Return a script with its ``#include NAME`` lines replaced by those files and its ``@NAME@`` by values.

    Args:
        script: The script.
        values: What stands for ``@NAME@``, by the name.

    Raises:
        BuildError: Nothing is known for a mark, or an included file is missing.
    """

    def value(mark: re.Match[str]) -> str:
        if mark[1] not in values:
            raise BuildError(f"{script}: nothing is known for {mark[0]}")
        return values[mark[1]]

    lines = []
    for line in script.read_text(encoding="utf-8").splitlines():
        if line.startswith(_INCLUDE):
            included = COMMON / line.removeprefix(_INCLUDE).strip()
            if not included.is_file():
                raise BuildError(f"{script} includes {included.name}, which is not in {COMMON}")
            lines += included.read_text(encoding="utf-8").splitlines()
        else:
            lines.append(line)
    return _MARK.sub(value, "\n".join(lines)) + "\n"
