"""A network's own certificate authority: TLS for a server that has no public name.

Its certificate travels in the join ticket, so a newcomer trusts exactly the network that its
operator belongs to and no one else's; no public authority, domain or mail is needed. Made with
P-256 keys as X.509 v3 (RFC 5280). Knows nothing of NATS.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from starai.core.clock import Clock
from starai.core.errors import ConfigurationRefused
from starai.wire.keeping import write_secret

#: The authority lives as long as its network is likely to.
CA_LIFETIME: Final = timedelta(days=20 * 365)
#: A server's certificate is made anew at each start; this is for one that runs very long.
SERVER_LIFETIME: Final = timedelta(days=397)
#: A newcomer's clock may be behind by this much.
BACKDATED: Final = timedelta(days=1)

_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True)
class TlsFiles:
    """A server's certificate and key, and the authority to which it holds others, as PEM files."""

    certificate: Path
    key: Path
    ca: Path | None = None


class CertificateAuthority:
    """A key that vouches for servers; get one with `load_or_create_ca`."""

    def __init__(
        self, home: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        """Take the folder for what it issues."""
        self._home = home
        self._certificate = certificate
        self._key = key

    @property
    def der(self) -> bytes:
        """Its certificate, about 400 bytes."""
        return self._certificate.public_bytes(serialization.Encoding.DER)

    def issue(self, names: tuple[str, ...], clock: Clock) -> TlsFiles:
        """A certificate for a server that is reached under ``names`` (host names, addresses)."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = _moment(clock)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name("StarAI server"))
            .issuer_name(self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + SERVER_LIFETIME)
            .add_extension(x509.SubjectAlternativeName(list(map(_alternative, names))), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_usage(signs_certificates=False), True)
            .add_extension(
                # A server is also the client of the servers that it is routed to.
                x509.ExtendedKeyUsage(
                    [
                        ExtendedKeyUsageOID.SERVER_AUTH,
                        ExtendedKeyUsageOID.CLIENT_AUTH,
                    ]
                ),
                False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .sign(self._key, hashes.SHA256())
        )
        files = TlsFiles(
            self._home / "server.pem", self._home / "server-key.pem", self._home / "ca.pem"
        )
        write_secret(files.certificate, certificate.public_bytes(_PEM))
        write_secret(files.key, _key_pem(key))
        return files


def load_or_create_ca(home: Path, clock: Clock) -> CertificateAuthority:
    """The authority kept in ``home``, made there the first time.

    Raises:
        ConfigurationRefused: its files cannot be read; a new one would be trusted by no ticket.
        StoreFailed: its files cannot be written.
    """
    path = home / "ca.pem"
    if path.exists():
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            raw = (home / "ca-key.pem").read_bytes()
            key = serialization.load_pem_private_key(raw, password=None)
        except (OSError, ValueError) as error:
            raise ConfigurationRefused(
                f"cannot read the network's certificate authority in {home}; restore ca.pem and "
                "ca-key.pem from a backup, or move them away and make new join tokens"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigurationRefused(f"the key in {home} is not one of ours")
        return CertificateAuthority(home, certificate, key)
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = _name("StarAI network"), _moment(clock)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(_usage(signs_certificates=True), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    write_secret(home / "ca-key.pem", _key_pem(key))
    write_secret(path, certificate.public_bytes(_PEM))
    return CertificateAuthority(home, certificate, key)


def read_der(path: Path) -> bytes:
    """The one certificate in a PEM file.

    Raises:
        ConfigurationRefused: there is none.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationRefused(f"no certificate can be read from {path}") from error
    return certificate.public_bytes(serialization.Encoding.DER)


def trust(ca_der: bytes) -> ssl.SSLContext | None:
    """Trust in servers that this authority vouches for, and in no others; None for none given.

    Raises:
        ConfigurationRefused: it is no certificate.
    """
    if not ca_der:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=ca_der)
    except ssl.SSLError as error:
        raise ConfigurationRefused("the network's certificate cannot be read") from error
    return context


def fingerprint(der: bytes) -> str:
    """A certificate's SHA-256 as people compare it: ``3F:0A:…``."""
    return x509.load_der_x509_certificate(der).fingerprint(hashes.SHA256()).hex(":").upper()


def validity_ms(der: bytes) -> tuple[int, int]:
    """From when until when a certificate is good, in Unix milliseconds."""
    certificate = x509.load_der_x509_certificate(der)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return int(begin.timestamp() * 1000), int(end.timestamp() * 1000)


def _moment(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.now_ms() // 1000, UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
