"""The doctor: what this host can enforce and what not, and how to mend it.

Each check is a small function that looks at one thing and returns a `Finding`; it changes nothing on the host and
needs no running agent. A check that itself fails is a finding, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from garrison.supervisor.settings import Settings

Status = Literal["ok", "warn", "fail"]
SEVERITY: Final[tuple[Status, ...]] = ("ok", "warn", "fail")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        name: What was looked at; fixed between versions.
        status: ``ok``; ``warn``: the agent works, with a fallback or with less; ``fail``: it does not start, or
            cannot keep its promises.
        detail: What is so, and which fallback is in use.
        remedy: What the operator can do; empty where nothing needs to be done.
        group: The heading under which it is shown.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""
    group: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def ok(name: str, detail: str) -> Finding:
    """Return a good finding."""
    return Finding(name, "ok", detail)


def warn(name: str, detail: str, remedy: str = "") -> Finding:
    """Return a finding that costs something."""
    return Finding(name, "warn", detail, remedy)


def fail(name: str, detail: str, remedy: str = "") -> Finding:
    """Return a finding that has to be mended."""
    return Finding(name, "fail", detail, remedy)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of some findings; ``ok`` of none."""
    return max((finding.status for finding in findings), key=SEVERITY.index, default="ok")


def examine(
    settings: Settings | None, problem: str = "", *, socket: str = "", config: str | None = None
) -> list[Finding]:
    """Look at everything and return the findings, group by group.

    Args:
        settings: The configuration; None where it has errors.
        problem: What is wrong with the configuration.
        socket: The control socket where it is not that of the configuration.
        config: The configuration file that was asked for, for a configuration with errors.
    """
    from garrison.supervisor import doctor_cgroups, doctor_files, doctor_kernel

    groups: list[tuple[str, list[tuple[str, Check]]]] = [
        ("Kernel", doctor_kernel.kernel_checks()),
        ("Privileges and limits", doctor_kernel.process_checks()),
        ("Cgroups", doctor_cgroups.checks(settings)),
        ("Configuration and files", doctor_files.file_checks(settings, problem, config)),
        ("Agent", [("agent", partial(doctor_files.agent, settings, socket))]),
    ]
    if settings is not None and settings.store.backend == "etcd":
        from garrison.supervisor import doctor_etcd

        groups.insert(-1, ("etcd", doctor_etcd.checks(settings)))
    return [finding for group, checks in groups for finding in _carry_out(group, checks)]


def _carry_out(group: str, checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    found: list[Finding] = []
    for name, check in checks:
        try:
            result = check()
            findings = [result] if isinstance(result, Finding) else list(result)
        except Exception as error:  # noqa: BLE001  one check that breaks must not hide the others
            findings = [
                warn(name, f"could not be looked at: {type(error).__name__}: {error}", "run as root, and try again")
            ]
        found += [Finding(one.name, one.status, one.detail, one.remedy, group) for one in findings]
    return found
