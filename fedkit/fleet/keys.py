"""The keys of a fleet: an authority of its own, the server's certificate, a key per device.

All of it is elliptic-curve cryptography by the `cryptography` library: P-384, as Flower asks of
devices, with SHA-384. The authority signs nothing but the server's certificate; the holder of its
key can stand in for the server, so it belongs in a safe place after `fedkit fleet init`.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkit.core.errors import FleetError
from fedkit.core.files import write_atomic

YEARS = 10
"""How long certificates are valid: boards are seldom visited."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of its own machine, by which the server reaches itself."""

_PEM = serialization.Encoding.PEM


def write_authority(folder: Path, name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Make a certificate authority; write `ca.key` and `ca.crt`.

    Args:
        folder: Where to; it exists.
        name: Whose authority it is, for people who read the certificate.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _named(f"{name} authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(subject, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA384())
    )
    _write_key(folder / "ca.key", key)
    write_atomic(folder / "ca.crt", certificate.public_bytes(_PEM))
    return certificate, key


def write_server(
    folder: Path,
    hosts: Iterable[str],
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
) -> None:
    """Make the server's certificate; write `server.key` and `server.crt`.

    Args:
        folder: Where to; it exists.
        hosts: Names and addresses that devices and the server itself reach it by.
        authority: Signs it.
    """
    certificate, signer = authority
    key, names = ec.generate_private_key(ec.SECP384R1()), list(dict.fromkeys(hosts))
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    signed = (
        _builder(_named(names[0]), certificate.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_host(name) for name in names]), critical=False)
        .add_extension(usage, critical=False)
        .add_extension(issuer, critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_key(folder / "server.key", key)
    write_atomic(folder / "server.crt", signed.public_bytes(_PEM))


def write_device_key(folder: Path) -> None:
    """Make a device's key; write `device.key` (secret) and `device.key.pub`."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_key(folder / "device.key", key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomic(folder / "device.key.pub", public + b"\n")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A board without a battery may wake up a little in the past.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def read_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return what `write_authority` wrote.

    Raises:
        FleetError: It is not there, or is damaged.
    """
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise FleetError(
            f"{folder} does not hold the authority of the fleet, ca.key and ca.crt ({error}); give "
            "the folder that was put into a safe place: --authority FOLDER"
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or key.public_key() != certificate.public_key()
    ):
        raise FleetError(
            f"{folder}: ca.key is not the key of ca.crt; give the fleet's own authority"
        )
    return certificate, key


def expires(certificate: Path) -> datetime.datetime:
    """Return when a certificate ends.

    Raises:
        FleetError: It cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise FleetError(f"{certificate} cannot be read ({error}); renew it") from error


def _write_key(
    path: Path,
    key: ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
) -> None:
    """Write a private key that nobody but its owner can read, from its first byte."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(key.private_bytes(_PEM, form, serialization.NoEncryption()))
