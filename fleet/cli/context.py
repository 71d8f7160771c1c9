"""What the options in front of the command say: which agent is meant."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from garrison.fleet.cli import exits
from garrison.fleet.cli.exits import CliError, complain

if TYPE_CHECKING:
    from garrison.fleet.cli.health import Places
    from garrison.supervisor.control.client import ControlClient
    from garrison.supervisor.settings import Settings

ACTION_SECONDS: Final = 70.0
"""How long an answer to a change is waited for: the agent answers when it is done, or gives up after 60 s."""

_SYSTEM_SOCKET: Final = "/run/garrison/control.sock"


@dataclass(frozen=True, slots=True)
class Target:
    """The agent that a command is for.

    Attributes:
        config: ``--config``; None: the default file, or the built-in defaults without one.
        socket: ``--socket``; None: ``control.sock`` in the configuration's ``run_dir``.
    """

    config: str | None = None
    socket: str | None = None

    def settings(self) -> Settings:
        """Return the configuration.

        Raises:
            CliError: It has errors.
        """
        from garrison.supervisor.settings import ConfigurationError, load

        try:
            return load(self.config)
        except ConfigurationError as error:
            raise CliError(
                str(error),
                "correct the file, or give `--socket PATH` to reach a running agent without it",
                exits.CONFIGURATION,
            ) from error
        except OSError as error:
            raise CliError(
                f"cannot read the configuration {error.filename or self.config or ''}: {error.strerror or error}",
                "run as root, or give `--socket PATH`",
                exits.NO_PERMISSION if isinstance(error, PermissionError) else exits.CONFIGURATION,
            ) from error

    def socket_path(self) -> str:
        """Return the path of the control socket; raises what `settings` does."""
        if self.socket is not None:
            return self.socket
        from garrison.supervisor.control.protocol import SOCKET_NAME

        try:
            return os.path.join(self.settings().agent.run_dir, SOCKET_NAME)
        except CliError as error:
            # A typo in the file must not keep anybody from the killswitch of an agent that runs on the last good one.
            path = os.path.join(self._run_dir_of_a_broken_file(), SOCKET_NAME)
            if not os.path.exists(path):
                raise
            complain(error.message, f"going on with the socket {path}, which is there")
            return path

    def _run_dir_of_a_broken_file(self) -> str:
        """Return ``agent.run_dir`` as far as the file still says one, else the system's."""
        import tomllib

        try:
            with open(self.config or "/etc/garrison/garrison.toml", "rb") as file:
                run_dir = tomllib.load(file).get("agent", {}).get("run_dir")
        except (OSError, ValueError, AttributeError, RecursionError):
            run_dir = None
        return run_dir if isinstance(run_dir, str) and run_dir.startswith("/") else os.path.dirname(_SYSTEM_SOCKET)

    def places(self) -> Places:
        """Return where this host is told things; the defaults where the configuration cannot say."""
        from garrison.fleet.cli.health import Places

        try:
            agent = self.settings().agent
        except CliError:
            # Only hints depend on it, and `--socket` is there to do without a configuration.
            return Places()
        return Places(agent.prefix, agent.killswitch_file)

    def client(self, timeout: float = 10.0) -> ControlClient:
        """Return a client for the agent; raises what `settings` does.

        Raises:
            CliError: There is no agent of this user's, but one of root's.
        """
        from garrison.supervisor.control.client import ControlClient

        path = self.socket_path()
        if (
            self.socket is None
            and path != _SYSTEM_SOCKET
            and os.geteuid() != 0
            and not os.path.exists(path)
            and os.path.exists(_SYSTEM_SOCKET)
        ):
            raise CliError(
                f"the agent of this host runs as root; {path}, for an agent of your own, is not there",
                "run as root: `sudo garrison ...`",
                exits.NO_PERMISSION,
            )
        return ControlClient(path, timeout)
