"""The rules: what they are called, how bad they are, and the ATT&CK techniques they stand for."""

from __future__ import annotations

from typing import Final, NamedTuple


class Rule(NamedTuple):
    """One rule.

    Attributes:
        id: Stable id for ``rule.id``.
        name: One line for people.
        description: What was seen and why it matters.
        severity: ``event.severity``: 21 low, 47 medium, 73 high, 99 critical.
        tactic: ATT&CK tactic, id and name.
        technique: ATT&CK technique, id and name.
        subtechnique: ATT&CK sub-technique, id and name, or None.
        bit: For `Process.alerted`.
    """

    id: str
    name: str
    description: str
    severity: int
    tactic: tuple[str, str]
    technique: tuple[str, str]
    subtechnique: tuple[str, str] | None
    bit: int


HIGH: Final = 73
MEDIUM: Final = 47

_EXECUTION: Final = ("TA0002", "Execution")
_EVASION: Final = ("TA0005", "Defense Evasion")
_INTERPRETER: Final = ("T1059", "Command and Scripting Interpreter")
_SHELL: Final = ("T1059.004", "Unix Shell")
_MASQUERADING: Final = ("T1036", "Masquerading")
_HIDE: Final = ("T1564", "Hide Artifacts")
_HIDDEN_FILES: Final = ("T1564.001", "Hidden Files and Directories")

SHELL_SOCKET: Final = Rule(
    "process-reverse-shell-socket",
    "Shell connected to a network socket",
    "A shell has a connected network socket as its standard input, output or error: whoever is at the other "
    "end of the connection can run commands.",
    HIGH,
    _EXECUTION,
    _INTERPRETER,
    _SHELL,
    1 << 0,
)
SHELL_PIPE: Final = Rule(
    "process-reverse-shell-pipe",
    "Shell connected to the network through pipes",
    "A shell takes its commands from a pipe and writes to a pipe, and a process that holds their other ends "
    "has a connected network socket.",
    HIGH,
    _EXECUTION,
    _INTERPRETER,
    _SHELL,
    1 << 1,
)
SHELL_TERMINAL: Final = Rule(
    "process-reverse-shell-terminal",
    "Shell on a pseudo-terminal that is served from a network socket",
    "The parent of an interactive shell has a connected network socket as its own standard input or output "
    "and is no known login service.",
    HIGH,
    _EXECUTION,
    _INTERPRETER,
    _SHELL,
    1 << 2,
)
MEMFD: Final = Rule(
    "process-memfd-executable",
    "Execution from memory",
    "The executable is an anonymous file in memory: nothing of it is on a disk.",
    HIGH,
    _EVASION,
    ("T1620", "Reflective Code Loading"),
    None,
    1 << 3,
)
DELETED: Final = Rule(
    "process-deleted-executable",
    "Executable deleted while it runs",
    "The file that the process executes has been deleted and no other file is in its place.",
    MEDIUM,
    _EVASION,
    ("T1070", "Indicator Removal"),
    ("T1070.004", "File Deletion"),
    1 << 4,
)
TEMPORARY: Final = Rule(
    "process-temporary-executable",
    "Execution from a temporary folder",
    "The executable is in a folder that everybody may write to.",
    MEDIUM,
    _EVASION,
    _MASQUERADING,
    None,
    1 << 5,
)
HIDDEN: Final = Rule(
    "process-hidden-executable",
    "Execution from a hidden path",
    "The executable, or a folder above it, has a name that starts with a dot.",
    MEDIUM,
    _EVASION,
    _HIDE,
    _HIDDEN_FILES,
    1 << 6,
)
TEMPORARY_SCRIPT: Final = Rule(
    "process-temporary-script",
    "Script run from a temporary folder",
    "An interpreter runs a script that is in a folder that everybody may write to.",
    MEDIUM,
    _EXECUTION,
    _INTERPRETER,
    None,
    1 << 7,
)
HIDDEN_SCRIPT: Final = Rule(
    "process-hidden-script",
    "Script run from a hidden path",
    "An interpreter runs a script that has, or is below, a name that starts with a dot.",
    MEDIUM,
    _EVASION,
    _HIDE,
    _HIDDEN_FILES,
    1 << 8,
)

RULES: Final = (
    SHELL_SOCKET,
    SHELL_PIPE,
    SHELL_TERMINAL,
    MEMFD,
    DELETED,
    TEMPORARY,
    HIDDEN,
    TEMPORARY_SCRIPT,
    HIDDEN_SCRIPT,
)
