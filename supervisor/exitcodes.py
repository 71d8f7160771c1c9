"""What `garrisond`'s exit codes mean. The numbers are those of sysexits.h where one fits.

The systemd unit does not restart on 64 and 78: those stay wrong until somebody changes something.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """An exit code with its explanation in `meaning` and what the operator does about it in `remedy`."""

    meaning: str
    remedy: str

    def __new__(cls, code: int, meaning: str, remedy: str) -> Self:
        """Attach the texts to the number."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        member.remedy = remedy
        return member

    OK = 0, "An orderly stop: everything in flight was delivered, spooled or counted.", "Nothing."
    USAGE = 64, "The command line was not understood.", "Compare it with --help."
    UNAVAILABLE = (
        69,
        "A service that is needed cannot be reached, and nothing is cached to run on.",
        "Check the store named in the log; systemd starts the agent again meanwhile.",
    )
    OS_REFUSED = (
        71,
        "The operating system refused something that the agent cannot do without: cgroups, fork, a directory.",
        "The log names the call and the path; `garrison doctor` says what this host can do.",
    )
    ALREADY_RUNNING = (
        75,
        "Another instance holds the lock, so this one did nothing.",
        "Stop the process that the message names, or give this one a run_dir of its own.",
    )
    CONFIGURATION = (
        78,
        "The configuration file has errors; all of them are listed.",
        "Correct them; `garrisond --check` tells whether the file is good.",
    )
