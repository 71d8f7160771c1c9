"""What a benchmark hands back, and how it becomes a Markdown table: ratios first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.stats import Series, number


@dataclass
class Row:
    """One line of the table: ours, and what stands beside it.

    Attributes:
        what: What is compared.
        ours: Our measurements.
        beside: The peer's or the limit's; None where a number stands alone.
        ratio: How many times better we are than what stands beside, at the median; below 1 is worse.
        goal: In words; empty where the row only informs.
        met: Whether the goal was met; None without a goal.
    """

    what: str
    ours: Series
    beside: Series | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    def cells(self) -> list[str]:
        """Return the row's cells as text."""
        control = [number(value) for s in (self.ours, self.beside) if s and (value := s.control()) is not None]
        return [
            f"**{number(self.ratio)}×**" if self.ratio is not None else "",
            self.goal,
            {True: "yes", False: "**no**", None: ""}[self.met],
            self.what,
            self.ours.text(),
            f"{self.beside.name}: {self.beside.text()}" if self.beside else "",
            ", ".join(control),
        ]

    def document(self) -> dict[str, Any]:
        """Return everything about it, for the JSON file."""
        return {
            "what": self.what,
            "ratio": self.ratio,
            "goal": self.goal,
            "met": self.met,
            "garrison": self.ours.document(),
            "beside": self.beside.document() if self.beside else None,
        }


@dataclass
class Report:
    """What one benchmark measured.

    Attributes:
        name: Its name on the command line.
        notes: Sentences that belong below the table: checks that held, and how things were split up.
        error: Why it was not run or not finished; empty where all is well.
    """

    name: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""

    def document(self) -> dict[str, Any]:
        """Return everything about it, for the JSON file."""
        rows = [row.document() for row in self.rows]
        return {"name": self.name, "error": self.error, "notes": self.notes, "rows": rows}


HEAD = ("Ratio", "Goal", "Met", "What", "Garrison: median (p99; range; n)", "Beside it", "A/A")


def markdown(reports: list[Report], facts: list[str]) -> str:
    """Return the whole output: facts about the machine, the table, the notes."""
    lines = [*(f"- {fact}" for fact in facts), "", _line(HEAD), _line(["---:", *["---"] * (len(HEAD) - 1)])]
    for report in reports:
        lines += [_line(row.cells()) for row in report.rows]
    notes = [f"- {report.name}: {note}" for report in reports for note in report.notes]
    notes += [f"- {report.name}: **not finished**: {report.error}" for report in reports if report.error]
    return "\n".join([*lines, "", *notes]) + "\n"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
