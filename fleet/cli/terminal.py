"""The terminal: a rich console that never cuts a fact short and never takes text for markup."""

from __future__ import annotations

import sys
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

UNLIMITED: Final = 10_000
"""Columns of an output that is no terminal: there a line is as long as it needs to be."""


class Terminal(Console):
    """Standard output. Colours only on a terminal, and none where NO_COLOR is set."""

    def __init__(self, width: int | None = None) -> None:
        tty = sys.stdout.isatty()
        super().__init__(
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
            width=width if width is not None or tty else UNLIMITED,
        )

    def on_broken_pipe(self) -> None:
        """Let `exits.guarded` deal with it; rich would end the process with 1."""
        raise BrokenPipeError

    def lines(self, text: Text, indent: int = 0) -> list[Text]:
        """Break a text into lines of the terminal's width, those after the first moved to the right."""
        if self.width >= UNLIMITED:
            return [text]
        out: list[Text] = []
        for line in text.wrap(self, max(20, self.width - indent), overflow="fold"):
            line.rstrip()
            out.append(Text(" " * indent) + line if out else line)
        return out


def table(rows: list[list[Text]], right: frozenset[int], gap: int = 2) -> list[Text]:
    """Return rows as lines with columns as wide as their widest cell; those of `right` set to the right."""
    widths = [max(cell_len(row[i].plain) for row in rows) for i in range(len(rows[0]))]
    lines: list[Text] = []
    for row in rows:
        line = Text()
        for i, cell in enumerate(row):
            pad = " " * (widths[i] - cell_len(cell.plain))
            line.append_text(Text(pad) + cell if i in right else cell + Text(pad))
            line.append(" " * gap)
        line.rstrip()
        lines.append(line)
    return lines


def width_of(lines: list[Text]) -> int:
    """Return the columns of the longest line."""
    return max((cell_len(line.plain) for line in lines), default=0)
