"""Problems of a configuration: collected all at once, because fixing them one by one costs a restart each."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from garrison.supervisor.exitcodes import ExitCode

MAX_PROBLEMS = 100
"""Most problems that are kept; a file with more is not the file that was meant."""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong.

    Attributes:
        source: The file, or another name of where the document came from.
        key: Dotted key, ``workers.process.budget.pids_max``; empty where the whole file is meant.
        what: What is wrong with it.
        remedy: What to do about it; may be empty where `what` leaves nothing open.
    """

    source: str
    key: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.source, self.key) if part)
        return f"{where}: {self.what}" + (f". {self.remedy}" if self.remedy else "")


class ConfigurationError(ValueError):
    """A configuration cannot be used; nothing of it was taken over.

    At start the program ends with exit code 78; at run time the caller keeps the old configuration and
    reports this text.
    """

    exit_code = ExitCode.CONFIGURATION

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class Collector:
    """Gathers problems of one document and knows which keys have one."""

    __slots__ = ("_failed", "problems", "source", "suppressed")

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.suppressed = 0
        self._failed: set[str] = set()

    def add(self, key: str, what: str, remedy: str = "") -> None:
        """Note a problem. Over `MAX_PROBLEMS` they are only counted."""
        if len(self.problems) >= MAX_PROBLEMS:
            self.suppressed += 1
            return
        self._failed.add(key)
        self.problems.append(Problem(source=self.source, key=key, what=what, remedy=remedy))

    def failed(self, *keys: str) -> bool:
        """Tell whether one of the keys has a problem: a check that compares it would only add noise."""
        return not self._failed.isdisjoint(keys)

    def finish(self) -> None:
        """Raise what was gathered, if anything was.

        Raises:
            ConfigurationError: There is at least one problem.
        """
        if not self.problems:
            return
        problems = list(self.problems)
        if self.suppressed:
            problems.append(Problem(source=self.source, key="", what=f"and {self.suppressed} more problems"))
        raise ConfigurationError(problems)
