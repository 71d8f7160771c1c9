"""Certificates and password from files, read anew for each connection, so that a rotation needs no restart."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from garrison.supervisor.stores.etcd.errors import EtcdError

MAX_FILE_BYTES = 1024 * 1024
MAX_PASSWORD_BYTES = 1024


class Files(NamedTuple):
    """Paths; empty where there is none."""

    ca_cert: str = ""
    cert: str = ""
    key: str = ""
    password: str = ""


class CredentialError(ValueError):
    """A file cannot be used. The text names it and says what to do."""


def read_tls(files: Files, endpoint: str = "") -> tuple[bytes, bytes | None, bytes | None]:
    """Return the CA's certificates, and the client's certificate and key or None, as PEM.

    Raises:
        EtcdError: Kind ``credentials``: a file cannot be read or is no PEM.
    """
    try:
        ca = read_pem(files.ca_cert, "CERTIFICATE")
        if not files.cert:
            return ca, None, None
        return ca, read_pem(files.cert, "CERTIFICATE"), read_pem(files.key, "PRIVATE KEY")
    except CredentialError as error:
        raise EtcdError("credentials", str(error), endpoint) from error


def read_password(files: Files, endpoint: str = "") -> str:
    """Return the password: the file's first line.

    Raises:
        EtcdError: Kind ``credentials``: it cannot be read, or others can read it.
    """
    try:
        return password_of(files.password)
    except CredentialError as error:
        raise EtcdError("credentials", str(error), endpoint) from error


def check_tls(ca_cert: str, cert: str, key: str) -> None:
    """Check that the files can be used together for TLS; empty paths are not looked at.

    Raises:
        CredentialError: They cannot; the text names the file and says why.
    """
    import ssl  # for this check only

    if not ca_cert:
        return
    read_pem(ca_cert, "CERTIFICATE")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise CredentialError(f"{ca_cert} holds no certificates that can be used: {error}") from error
    if not cert:
        return
    read_pem(cert, "CERTIFICATE")
    if b"ENCRYPTED" in read_pem(key, "PRIVATE KEY"):
        raise CredentialError(f"{key} is encrypted; store it without a passphrase, readable by its owner only")
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise CredentialError(f"{cert} and {key} do not belong together, or cannot be used: {error}") from error


def read_pem(path: str, what: str) -> bytes:
    """Return a PEM file that holds at least one block of a kind.

    Raises:
        CredentialError: It does not, or cannot be read.
    """
    data = _read(path, MAX_FILE_BYTES)
    if f"{what}-----".encode() not in data:
        raise CredentialError(f"{path} holds no {what} in PEM form")
    return data


def password_of(path: str) -> str:
    """Return the first line of a password file that only its owner can read.

    Raises:
        CredentialError: It cannot be read, is empty, or is open to others.
    """
    data = _read(path, MAX_PASSWORD_BYTES, private=True)
    try:
        password = data.decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError as error:
        raise CredentialError(f"{path} is not UTF-8") from error
    if not password:
        raise CredentialError(f"{path} has no password in its first line")
    return password


def _read(path: str, most: int, *, private: bool = False) -> bytes:
    try:
        # Non-blocking: a FIFO of this name must not hang the session.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CredentialError(f"{path} is no regular file")
        if private and found.st_mode & 0o077:
            raise CredentialError(
                f"{path} can be read by others (mode {stat.S_IMODE(found.st_mode):04o}); chmod 600 {path}"
            )
        data = os.read(fd, most + 1)
    except OSError as error:
        raise CredentialError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > most:
        raise CredentialError(f"{path} is larger than {most} bytes")
    return data
