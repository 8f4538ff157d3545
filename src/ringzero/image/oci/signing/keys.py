"""Keys for signatures of images, by the library `cryptography` (`pip install 'ringzero[sign]'`).

A public key is a SubjectPublicKeyInfo in PEM (RFC 5280, 4.1.2.7), a private one PKCS #8 in PEM,
encrypted or not (RFC 5958, RFC 8018): what openssl writes, and what `cosign import-key-pair`
takes. ECDSA is with SHA-256 whatever the curve, as cosign has it; so is RSA, by PKCS #1 v1.5.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ringzero.errors import InvalidValueError, MissingToolError
from ringzero.host.files import host_error
from ringzero.records import record

_MAX_KEY = 64 << 10
# What cosign itself writes: scrypt and NaCl's secretbox around PKCS #8, in its own PEM.
_COSIGN = (b"ENCRYPTED SIGSTORE PRIVATE KEY", b"ENCRYPTED COSIGN PRIVATE KEY")


@record
class VerifyingKey:
    """A public key, and where it came from."""

    path: Path
    key: Any

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the key (SubjectPublicKeyInfo in DER), in hexadecimal digits."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        data = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(data).hexdigest()

    def fits(self, signature: bytes, data: bytes) -> bool:
        """Whether the private key that belongs to it made a signature of `data`."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

        try:
            if isinstance(self.key, ec.EllipticCurvePublicKey):
                self.key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            elif isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                self.key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return False
        return True


@record
class SigningKey:
    """A private key, and where it came from."""

    path: Path
    key: Any

    @property
    def public(self) -> VerifyingKey:
        """The public key that belongs to it."""
        return VerifyingKey(self.path, self.key.public_key())

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data`."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding

        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(hashes.SHA256()))
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        signed: bytes = self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return signed


def require() -> None:
    """Raise MissingToolError where the library is not installed."""
    try:
        import cryptography  # noqa: F401 - whether it is there
    except ImportError:
        raise MissingToolError(
            "signatures need the Python library cryptography",
            hint="pip install 'ringzero[sign]'",
        ) from None


def load_private(path: Path, password: bytes | None) -> SigningKey:
    """Read a private key. Raises InvalidValueError, HostError, MissingToolError."""
    require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    if any(name in data for name in _COSIGN):
        raise InvalidValueError(
            f"{path} is a private key in cosign's own form, which is not read here",
            hint="make one for both: `ringzero image keygen`, `cosign import-key-pair --key FILE`; "
            "its public key does for `image verify` and `pull --verify`",
        )
    encrypted = b"ENCRYPTED" in data
    if encrypted and password is None:
        raise InvalidValueError(
            f"{path} needs a password", hint="set RINGZERO_KEY_PASSWORD, or sign at a terminal"
        )
    try:
        key = load_pem_private_key(data, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        what = "no private key in PEM" + (", or the password is another" if encrypted else "")
        raise InvalidValueError(
            f"{path} is {what}", hint="`ringzero image keygen` makes one"
        ) from fault
    known = (ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, rsa.RSAPrivateKey)
    if not isinstance(key, known):
        raise _other_kind(path)
    return SigningKey(path, key)


def load_public(path: Path) -> VerifyingKey:
    """Read a public key. Raises InvalidValueError, HostError, MissingToolError."""
    require()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path)
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as fault:
        private = b"PRIVATE KEY" in data
        raise InvalidValueError(
            f"{path} is {'a private key' if private else 'no public key in PEM'}",
            hint="give the public one (.pub)" if private else "`ringzero image keygen` makes one",
        ) from fault
    if not isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, rsa.RSAPublicKey)):
        raise _other_kind(path)
    return VerifyingKey(path, key)


def generate(password: bytes | None) -> tuple[bytes, bytes]:
    """Return a new private key and its public one in PEM: ECDSA with the curve P-256.

    Raises MissingToolError.
    """
    require()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return private, public


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY)
    except OSError as fault:
        raise host_error(fault, "read the key", path) from fault


def _other_kind(path: Path) -> InvalidValueError:
    return InvalidValueError(
        f"{path} is a key of a kind that signs no images",
        hint="ECDSA, Ed25519 and RSA do; `ringzero image keygen` makes one",
    )
