"""``garrisond --check``: the configuration file, and the settings of every worker against its modules."""

from __future__ import annotations

import os
import shutil
import sys

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.settings import Settings
from garrison.supervisor.worker.supervisor import module_name


def check(settings: Settings) -> int:
    """Print what is wrong with the workers' modules, commands and settings; return the exit code.

    The file itself has been checked when it was loaded. Modules are imported here, so this runs their code.
    """
    problems = [*_problems(settings), *_etcd_problems(settings)]
    for warning in settings.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    for problem in problems:
        sys.stderr.write(f"{settings.source or 'built-in defaults'}: {problem}\n")
    if problems:
        return ExitCode.CONFIGURATION
    names = ", ".join(sorted(settings.workers)) or "none"
    sys.stdout.write(f"{settings.source or 'built-in defaults'}: good; workers: {names}\n")
    return ExitCode.OK


def _etcd_problems(settings: Settings) -> list[str]:
    """Look at the files of the etcd store; the server is not asked."""
    etcd = settings.store.etcd
    if settings.store.backend != "etcd":
        return []
    from garrison.supervisor.stores.etcd.credentials import CredentialError, check_tls, password_of

    found = []
    try:
        check_tls(etcd.ca_cert, etcd.cert, etcd.key)
    except CredentialError as error:
        found.append(f"store.etcd: {error}")
    try:
        if etcd.password_file:
            password_of(etcd.password_file)
    except CredentialError as error:
        found.append(f"store.etcd.password_file: {error}")
    return found


def _problems(settings: Settings) -> list[str]:
    from garrison.workers.runtime import configuring
    from garrison.workers.runtime.loader import load_all
    from garrison.workers.runtime.module import ConfigError

    found = []
    for name, worker in sorted(settings.workers.items()):
        where = f"workers.{name}"
        if worker.command:
            program = worker.command[0]
            if not (os.path.isabs(program) and os.access(program, os.X_OK) and os.path.isfile(program)):
                hint = shutil.which(os.path.basename(program))
                found.append(
                    f"{where}.command: {program} is no program that can be run"
                    + (f"; there is one at {hint}" if hint and hint != program else "")
                )
            continue
        classes, failures = load_all([(module_name(spec), spec) for spec in worker.modules])
        found += [f"{where}.modules: {error}" for error in failures.values()]
        if not failures:
            try:
                configuring.check(classes, tuple(classes), worker.settings)
            except ConfigError as error:
                found.append(f"{where}.settings: {error}")
    return found
