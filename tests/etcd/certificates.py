"""Certificates for a cluster on loopback, made by the code that makes those of a fleet."""

from __future__ import annotations

from pathlib import Path

from garrison.fleet.etcd.certificates import Folder, Wanted
from tests.etcd.cluster import Tls

SERVER_NAMES = ("127.0.0.1", "localhost")


def tls_of(folder: Path, client: str = "operator") -> Tls:
    """Return the certificates that `garrison fleet init` keeps in a folder, those of one client among them."""
    return Tls(
        folder / "ca.crt",
        folder / "server.crt",
        folder / "server.key",
        folder / f"{client}.crt",
        folder / f"{client}.key",
    )


def make_tls(folder: Path, *clients: str) -> Tls:
    """Make an authority, a server's certificate and one for each client, whose name is its user; return the first's."""
    pki = Folder(str(folder))
    pki.make_authority()
    pki.make(Wanted("server", "garrison-etcd", SERVER_NAMES))
    for client in clients or ("operator",):
        pki.make(Wanted(client, client))
    return tls_of(folder, clients[0] if clients else "operator")
