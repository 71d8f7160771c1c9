"""The rules: what a change at a place means, how bad it is, and the ATT&CK technique it stands for."""

from __future__ import annotations

from typing import Final, NamedTuple


class Rule(NamedTuple):
    """One rule.

    Attributes:
        id: Stable id for ``rule.id``.
        name: One line for people.
        description: What was changed and why it matters.
        severity: ``event.severity``: 21 low, 47 medium, 73 high, 99 critical.
        alert: Whether a change is an alert; else it is an event that carries the rule.
        tactic: ATT&CK tactic, id and name.
        technique: ATT&CK technique, id and name.
        subtechnique: ATT&CK sub-technique, id and name, or None.
    """

    id: str
    name: str
    description: str
    severity: int
    alert: bool
    tactic: tuple[str, str]
    technique: tuple[str, str]
    subtechnique: tuple[str, str] | None


CRITICAL: Final = 99
HIGH: Final = 73
MEDIUM: Final = 47

_PERSISTENCE: Final = ("TA0003", "Persistence")
_ESCALATION: Final = ("TA0004", "Privilege Escalation")
_IMPACT: Final = ("TA0040", "Impact")
_SCHEDULED: Final = ("T1053", "Scheduled Task/Job")
_BOOT: Final = ("T1547", "Boot or Logon Autostart Execution")
_EVENT: Final = ("T1546", "Event Triggered Execution")
_ACCOUNT: Final = ("T1098", "Account Manipulation")
_AUTHENTICATION: Final = ("T1556", "Modify Authentication Process")

CRON: Final = Rule(
    "files-cron",
    "Scheduled job changed",
    "A file from which cron, anacron or at starts commands was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    _SCHEDULED,
    ("T1053.003", "Cron"),
)
SYSTEMD: Final = Rule(
    "files-systemd-unit",
    "systemd unit or generator changed",
    "A file from which systemd starts programs at boot, by a timer or on an event was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    ("T1543", "Create or Modify System Process"),
    ("T1543.002", "Systemd Service"),
)
INIT: Final = Rule(
    "files-init-script",
    "Boot script changed",
    "A script that runs at boot (rc.local, init.d, inittab) was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    ("T1037", "Boot or Logon Initialization Scripts"),
    ("T1037.004", "RC Scripts"),
)
PROFILE: Final = Rule(
    "files-shell-profile",
    "Shell start-up file changed",
    "A file that shells read at login or start was changed: its commands run as whoever logs in next.",
    MEDIUM,
    True,
    _PERSISTENCE,
    _EVENT,
    ("T1546.004", "Unix Shell Configuration Modification"),
)
AUTHORIZED_KEYS: Final = Rule(
    "files-authorized-keys",
    "SSH authorized keys changed",
    "The list of keys that may log in as a user, or a file that sshd runs or reads for that login, was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    _ACCOUNT,
    ("T1098.004", "SSH Authorized Keys"),
)
SSH_CONFIG: Final = Rule(
    "files-ssh-config",
    "SSH configuration changed",
    "The configuration or a key of the SSH server or client was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    _AUTHENTICATION,
    None,
)
LD_PRELOAD: Final = Rule(
    "files-ld-preload",
    "Preloaded libraries changed",
    "/etc/ld.so.preload was changed: what is listed there is loaded into every program.",
    CRITICAL,
    True,
    _PERSISTENCE,
    ("T1574", "Hijack Execution Flow"),
    ("T1574.006", "Dynamic Linker Hijacking"),
)
LD_CONFIG: Final = Rule(
    "files-ld-config",
    "Library search path changed",
    "The list of folders from which programs load their libraries was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    ("T1574", "Hijack Execution Flow"),
    ("T1574.006", "Dynamic Linker Hijacking"),
)
SUDOERS: Final = Rule(
    "files-sudoers",
    "Rules of sudo or doas changed",
    "Who may run what as another user was changed.",
    HIGH,
    True,
    _ESCALATION,
    ("T1548", "Abuse Elevation Control Mechanism"),
    ("T1548.003", "Sudo and Sudo Caching"),
)
PAM: Final = Rule(
    "files-pam",
    "PAM configuration or module changed",
    "How users prove who they are was changed, or a library that takes part in it.",
    HIGH,
    True,
    _PERSISTENCE,
    _AUTHENTICATION,
    ("T1556.003", "Pluggable Authentication Modules"),
)
ACCOUNTS: Final = Rule(
    "files-accounts",
    "User or group database changed",
    "Users, groups or passwords were changed.",
    MEDIUM,
    True,
    _PERSISTENCE,
    _ACCOUNT,
    None,
)
KERNEL_MODULES: Final = Rule(
    "files-kernel-modules",
    "Kernel module configuration changed",
    "Which kernel modules are loaded at boot, or what runs when one is loaded, was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    _BOOT,
    ("T1547.006", "Kernel Modules and Extensions"),
)
UDEV: Final = Rule(
    "files-udev-rules",
    "udev rule changed",
    "A rule that runs programs when devices come and go was changed.",
    HIGH,
    True,
    _PERSISTENCE,
    _EVENT,
    ("T1546.017", "Udev Rules"),
)
AUTOSTART: Final = Rule(
    "files-autostart",
    "Desktop autostart entry changed",
    "An entry that starts a program with a user's desktop session was changed.",
    MEDIUM,
    True,
    _PERSISTENCE,
    _BOOT,
    ("T1547.013", "XDG Autostart Entries"),
)
PACKAGE_HOOKS: Final = Rule(
    "files-package-hooks",
    "Package manager hook changed",
    "Configuration from which the package manager runs commands as root was changed.",
    MEDIUM,
    True,
    _PERSISTENCE,
    _EVENT,
    ("T1546.016", "Installer Packages"),
)
WATCHED: Final = Rule(
    "files-watched",
    "Watched file changed",
    "A file at a path of the setting `alert_paths` was changed.",
    MEDIUM,
    True,
    _IMPACT,
    ("T1565", "Data Manipulation"),
    ("T1565.001", "Stored Data Manipulation"),
)
WEB: Final = Rule(
    "files-web-root",
    "File below a web root changed",
    "What the web server serves or runs was changed; an event, no alert, because deployments do so every day.",
    MEDIUM,
    False,
    _PERSISTENCE,
    ("T1505", "Server Software Component"),
    ("T1505.003", "Web Shell"),
)

RULES: Final = (
    *(LD_PRELOAD, LD_CONFIG, CRON, SYSTEMD, INIT, PROFILE, AUTHORIZED_KEYS, SSH_CONFIG, SUDOERS, PAM, ACCOUNTS),
    *(KERNEL_MODULES, UDEV, AUTOSTART, PACKAGE_HOOKS, WATCHED, WEB),
)
