"""How operations reach the cluster, and a connection to the first endpoint that serves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from garrison.supervisor.stores.etcd.connection import Access, Connection
from garrison.supervisor.stores.etcd.credentials import Files
from garrison.supervisor.stores.etcd.endpoints import Address, Endpoint, parse_endpoint
from garrison.supervisor.stores.etcd.errors import EtcdError

MAX_ENDPOINTS = 32

AnyConnection = TypeVar("AnyConnection", bound=Connection)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the cluster is and who asks.

    Attributes:
        endpoints: ``host:port`` of members.
        files: Authority, certificate, key and password; TLS is used where an authority is given.
        username: Empty: none, or the certificate's common name.
        prefix: What all keys start with.
    """

    endpoints: tuple[str, ...]
    files: Files = field(default_factory=Files)
    username: str = ""
    prefix: str = "/hids"


def connect(reach: Reach, use: Callable[[Address, Access], AnyConnection]) -> AnyConnection:
    """Return an open connection to the first endpoint that serves; it is the caller's to close.

    A member that answers and knows no leader is passed over: it can neither read nor write for the cluster.

    Args:
        reach: Where and who.
        use: Makes a connection.

    Raises:
        EtcdError: None serves; the error is that of the last one, with the number of those before it.
        ValueError: An endpoint is none.
    """
    endpoints = [parse_endpoint(text) for text in reach.endpoints[:MAX_ENDPOINTS]]
    if not endpoints:
        raise ValueError("no endpoint is given")
    failed: EtcdError | None = None
    for endpoint in endpoints:
        access = Access(
            tls=bool(reach.files.ca_cert) or endpoint.scheme == "https", files=reach.files, username=reach.username
        )
        if access.tls and not reach.files.ca_cert:
            raise EtcdError("credentials", "https needs the authority of the members: --ca-cert", str(endpoint))
        try:
            connection = use(_resolved(endpoint), access)
            try:
                if not connection.open().leader:
                    raise EtcdError("no_leader", "the member is cut off from its cluster", str(endpoint))
            except BaseException:
                connection.close()
                raise
            return connection
        except EtcdError as error:
            failed = error
            if error.kind in ("auth", "credentials"):
                break  # another member would answer the same
    assert failed is not None
    if len(endpoints) > 1 and failed.kind not in ("auth", "credentials"):
        raise EtcdError(
            failed.kind, f"{failed.text} (none of {len(endpoints)} endpoints serves)", failed.endpoint
        ) from failed
    raise failed


def _resolved(endpoint: Endpoint) -> Address:
    if endpoint.is_ip:
        return Address(endpoint.host, endpoint.port, endpoint.host)
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise EtcdError("unavailable", f"the name cannot be resolved: {error}", str(endpoint)) from error
    # Addresses of the older protocol first: a member often listens on that one only, and there is no second try.
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return Address(endpoint.host, endpoint.port, str(found[0][4][0]))
