"""The certificates that `garrison fleet init` makes: an authority of its own, servers, agents, operators.

Needs the library ``cryptography`` (the extra ``garrison[fleet]``), which is on the machine of whoever runs the fleet
and never on the hosts. Nothing that exists is ever written again.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA_DAYS: Final = 3650
DAYS: Final = 730
RENEW_DAYS: Final = 30
"""Fewer days than this before its end a certificate is reported."""
_BACKDATED: Final = dt.timedelta(hours=1)
"""How much earlier than now a certificate begins: clocks of a fleet are not all right."""


class CertificateError(Exception):
    """A certificate cannot be made or read. The text says which file, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One certificate that should be there.

    Attributes:
        name: Its files are ``NAME.crt`` and ``NAME.key``.
        common_name: etcd takes it for the user where authentication is on.
        names: Host names and addresses that a server answers to; none for a client.
    """

    name: str
    common_name: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What there is of a certificate.

    Attributes:
        key: Its key is there.
        certificate: It is there.
        days: Days until it ends; negative: it has ended.
        problem: Why it does not do what it is wanted for; empty: it does.
    """

    key: bool
    certificate: bool
    days: float = 0.0
    problem: str = ""


class Folder:
    """A folder with an authority and the certificates that it has signed; made with mode 0700.

    Raises:
        CertificateError: The library ``cryptography`` is not installed.
    """

    def __init__(self, path: str) -> None:
        try:
            import cryptography  # noqa: F401
        except ImportError:
            raise CertificateError(
                "certificates are made with the Python library cryptography, which is not installed here:"
                " pip install 'garrison[fleet]'; or make them yourself and give --ca-cert, --cert and --key"
            ) from None
        self.path = path

    def file(self, name: str) -> str:
        """Return the path of a file."""
        return os.path.join(self.path, name)

    @property
    def ca(self) -> str:
        """The authority's certificate."""
        return self.file("ca.crt")

    def look(self, wanted: Wanted | None) -> Found:
        """Return what there is of a certificate; of the authority for None.

        Raises:
            CertificateError: A file cannot be read or holds something else.
        """
        name = "ca" if wanted is None else wanted.name
        key = os.path.exists(self.file(f"{name}.key"))
        path = self.file(f"{name}.crt")
        if not os.path.exists(path):
            return Found(key, certificate=False)
        certificate = self._read(path)
        left = certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
        days = left.total_seconds() / 86400
        return Found(key, certificate=True, days=days, problem=self._problem(certificate, wanted, days, key))

    def hosts(self) -> list[str]:
        """Return the hosts that have a certificate of their own."""
        try:
            names = os.listdir(self.file("hosts"))
        except OSError:
            return []
        return sorted(name.removesuffix(".crt") for name in names if name.endswith(".crt"))

    def open_to_others(self) -> Iterator[str]:
        """Yield what others than the owner can read or change here, with the remedy."""
        for path, mask in ((self.path, 0o022), *((path, 0o077) for path in self._keys())):
            try:
                mode = stat.S_IMODE(os.stat(path).st_mode)
            except OSError:
                continue
            if mode & mask:
                good = "700" if path == self.path else "600"
                yield f"{path} is open to others (mode {mode:04o}): chmod {good} {path}"

    def _keys(self) -> Iterator[str]:
        for folder in (self.path, self.file("hosts")):
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            yield from (os.path.join(folder, name) for name in sorted(names) if name.endswith(".key"))

    def make_authority(self, days: int = CA_DAYS) -> None:
        """Make the authority; completes what an earlier run has begun.

        Raises:
            CertificateError: The files cannot be written.
        """
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        key = self._key("ca")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Garrison fleet authority")])
        builder = self._builder(name, name, key, key, days).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self._sign("ca", builder.add_extension(_usage(authority=True), critical=True), key)

    def make(self, wanted: Wanted, days: int = DAYS) -> None:
        """Make a certificate, signed by the authority; completes what an earlier run has begun.

        Raises:
            CertificateError: The authority's key is not here, or the files cannot be written.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        authority, signer = self._read(self.ca), self._read_key("ca")
        key = self._key(wanted.name)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, wanted.common_name)])
        builder = self._builder(subject, authority.subject, key, signer, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if wanted.names:
            # A member is also a client: of the other members, and of itself for its HTTP gateway.
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
            builder = builder.add_extension(x509.SubjectAlternativeName(_general_names(wanted.names)), critical=False)
        self._sign(wanted.name, builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False), signer)

    def _builder(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: EllipticCurvePrivateKey,
        signer: EllipticCurvePrivateKey,
        days: int,
    ) -> x509.CertificateBuilder:
        from cryptography import x509

        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
        )

    def _sign(self, name: str, builder: x509.CertificateBuilder, signer: EllipticCurvePrivateKey) -> None:
        from cryptography.hazmat.primitives import hashes, serialization

        certificate = builder.sign(signer, hashes.SHA256())
        self._write(f"{name}.crt", certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _key(self, name: str) -> EllipticCurvePrivateKey:
        """Return a key: the one that is there, or a new one. P-256: every TLS stack has it, and it is cheap."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        if os.path.exists(self.file(f"{name}.key")):
            return self._read_key(name)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._write(f"{name}.key", pem, 0o600)
        return key

    def _read_key(self, name: str) -> EllipticCurvePrivateKey:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        path = self.file(f"{name}.key")
        try:
            with open(path, "rb") as file:
                key = serialization.load_pem_private_key(file.read(65536), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise CertificateError(f"cannot read the key {path}: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{path} is no elliptic curve key, so it was not made here; move it away")
        return key

    def _read(self, path: str) -> x509.Certificate:
        from cryptography import x509

        try:
            with open(path, "rb") as file:
                return x509.load_pem_x509_certificate(file.read(65536))
        except (OSError, ValueError) as error:
            raise CertificateError(f"cannot read the certificate {path}: {error}") from None

    def _problem(self, certificate: x509.Certificate, wanted: Wanted | None, days: float, key: bool) -> str:
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature
        from cryptography.x509.oid import NameOID

        if not key and wanted is not None:
            return "its key is not beside it"
        if days < 0:
            return "it has ended"
        if wanted is None:
            return f"it ends in {days:.0f} days" if days < RENEW_DAYS else ""
        try:
            certificate.verify_directly_issued_by(self._read(self.ca))
        except (InvalidSignature, ValueError, TypeError):
            return "the authority in ca.crt has not signed it"
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names or names[0].value != wanted.common_name:
            return f"its common name is not {wanted.common_name}"
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            present = {str(name.value) for name in extension}
        except x509.ExtensionNotFound:
            present = set()
        missing = [name for name in wanted.names if name not in present]
        if missing:
            return f"it is not for {', '.join(missing)}"
        return f"it ends in {days:.0f} days" if days < RENEW_DAYS else ""

    def _write(self, name: str, content: bytes, mode: int) -> None:
        write_new(self.file(name), content, mode)


def write_new(path: str, content: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all; its folder is made with mode 0700.

    Raises:
        CertificateError: It is there, or it cannot be written.
    """
    folder = os.path.dirname(path) or "."
    temporary = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # link(2) never replaces a file, as rename(2) would.
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror or error}") from None


def canonical_name(text: str) -> str:
    """Return a host name or an address as it stands in a certificate.

    Raises:
        CertificateError: It can be neither.
    """
    bare = text.strip().removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        pass
    labels = bare.removeprefix("*.").split(".")
    if not all(label and len(label) < 64 and label.replace("-", "a").isalnum() and label.isascii() for label in labels):
        raise CertificateError(f"{text!r} is neither an address nor a host name")
    return bare.lower()


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
