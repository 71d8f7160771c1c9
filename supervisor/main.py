"""``garrisond``: the master's command line."""

from __future__ import annotations

import argparse
import sys
from typing import Final, NoReturn

from garrison.supervisor.exitcodes import ExitCode
from garrison.supervisor.version import VERSION

SIGNALS: Final = {
    "TERM, INT": "stop all workers in good order, deliver what is queued, exit 0",
    "HUP": "read the configuration file again",
    "USR1": "open the log files and the event files anew",
}
"""What each signal does: for the help and the manual page."""


class _Parser(argparse.ArgumentParser):
    """Ends with the code of the contract instead of argparse's own."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        sys.stderr.write(f"garrisond: {message}; see garrisond --help\n")
        raise SystemExit(int(ExitCode.USAGE))


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; the manual pages are made from it too."""
    codes = "\n".join(f"  {int(code):>3}  {code.meaning}" for code in ExitCode)
    signals = "\n".join(f"  {names:<9}  {effect}" for names, effect in SIGNALS.items())
    made = _Parser(
        prog="garrisond",
        description="The master of Garrison: starts each detection worker in a cgroup of its own and keeps it to its "
        "budget. It stays in the foreground; systemd or another supervisor runs it.",
        epilog=f"signals:\n{signals}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--config", metavar="FILE", help="configuration file (default: /etc/garrison/garrison.toml)")
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check the configuration, modules included, and exit")
    what.add_argument("--print-config", action="store_true", help="print the configuration in force and exit")
    what.add_argument(
        "--cleanup",
        action="store_true",
        help="kill and remove what a crashed or ended agent left in its cgroups, and exit",
    )
    made.add_argument("--version", action="version", version=f"garrisond {VERSION}", help="print the version and exit")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run ``garrisond`` and return its exit code."""
    arguments = parser().parse_args(argv)
    from garrison.supervisor.settings import ConfigurationError, load

    try:
        settings = load(arguments.config)
    except ConfigurationError as error:
        return _fail(ExitCode.CONFIGURATION, str(error))
    if arguments.print_config:
        from garrison.supervisor.settings.render import to_toml

        sys.stdout.write(to_toml(settings))
        return ExitCode.OK
    if arguments.check:
        from garrison.supervisor.check import check

        return check(settings)
    if arguments.cleanup:
        from garrison.supervisor.cleanup import cleanup

        return cleanup(settings)
    from garrison.supervisor.agent import Agent
    from garrison.supervisor.startup import StartError

    try:
        return Agent(settings, arguments.config).run()
    except StartError as error:
        return _fail(error.code, str(error))


def _fail(code: ExitCode, message: str) -> int:
    sys.stderr.write(f"garrisond: {message}\n")
    return code
