"""What the options of fleet commands say: which cluster, and who asks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from garrison.fleet.cli import exits
from garrison.fleet.cli.context import Target
from garrison.fleet.cli.exits import CliError

if TYPE_CHECKING:
    from garrison.fleet.etcd.reach import Reach

_UNAVAILABLE: Final = frozenset({"unavailable", "timeout", "no_leader", "closed"})
_REFUSED: Final = frozenset({"permission", "auth"})


@dataclass(frozen=True, slots=True)
class Given:
    """The options as they were given; empty: not."""

    endpoints: str = ""
    ca_cert: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password_file: str = ""
    prefix: str = ""

    def reach(self, target: Target) -> Reach:
        """Return where the cluster is: as the options say, or without endpoints as the agent's configuration says.

        Raises:
            CliError: The options do not go together, or nothing names an endpoint.
        """
        from garrison.fleet.etcd.reach import Reach
        from garrison.supervisor.keys import DEFAULT_PREFIX, KeyGrammarError, check_prefix
        from garrison.supervisor.stores.etcd.credentials import Files
        from garrison.supervisor.stores.etcd.endpoints import parse_endpoint

        if bool(self.cert) != bool(self.key):
            raise CliError("--cert and --key go together", "give both", exits.USAGE)
        if self.user and not self.password_file:
            raise CliError("--user needs --password-file", "write the password into a file of mode 0600", exits.USAGE)
        try:
            if not self.endpoints:
                if self.prefix:
                    check_prefix(self.prefix)
                return self._configured(target)
            endpoints = tuple(part.strip() for part in self.endpoints.split(",") if part.strip())
            if not endpoints:
                raise ValueError("--endpoints names no endpoint")
            for endpoint in endpoints:
                parse_endpoint(endpoint)
            prefix = check_prefix(self.prefix or DEFAULT_PREFIX)
        except (ValueError, KeyGrammarError) as error:
            raise CliError(str(error), "see `garrison fleet --help`", exits.USAGE) from None
        return Reach(endpoints, Files(self.ca_cert, self.cert, self.key, self.password_file), self.user, prefix)

    def _configured(self, target: Target) -> Reach:
        from garrison.fleet.etcd.reach import Reach
        from garrison.supervisor.stores.etcd.credentials import Files

        settings = target.settings()
        etcd = settings.store.etcd
        if not etcd.endpoints:
            raise CliError(
                "no cluster is known", "give --endpoints HOST:PORT,... or set ETCDCTL_ENDPOINTS", exits.CONFIGURATION
            )
        if self.cert or self.user:
            # Who was named on the command line asks, not this host's agent.
            files = Files(self.ca_cert or etcd.ca_cert, self.cert, self.key, self.password_file)
            return Reach(etcd.endpoints, files, self.user, self.prefix or settings.agent.prefix)
        files = Files(self.ca_cert or etcd.ca_cert, etcd.cert, etcd.key, etcd.password_file)
        return Reach(etcd.endpoints, files, etcd.username, self.prefix or settings.agent.prefix)


@contextmanager
def told(remedy: str = "") -> Iterator[None]:
    """Turn what etcd says no with into an error of the command line.

    Raises:
        CliError: The cluster cannot be reached, or refuses.
    """
    from garrison.supervisor.stores.etcd.errors import EtcdError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("etcd3", "grpc", "google"):
            raise
        raise CliError(f"the etcd client is not installed: {error}", "pip install cslab-etcd3==0.12.1") from error
    except EtcdError as error:
        code = exits.FAILED
        if error.kind in _UNAVAILABLE:
            code = exits.UNAVAILABLE
        elif error.kind in _REFUSED:
            code = exits.NO_PERMISSION
        elif error.kind == "credentials":
            code = exits.CONFIGURATION
        raise CliError(str(error), remedy, code) from error
