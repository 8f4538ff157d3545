"""Signatures of Debian's Release files: OpenPGP clear-signed text (RFC 9580, section 7).

Checked by gpgv where it is installed, else by the library pysequoia (`pip install
'ringzero[debian]'`), with the keys of Debian's archive (keys.asc: those of bookworm and trixie
in Debian's package debian-archive-keyring 2023.3+deb12u2), or those of RINGZERO_MIRROR_KEYS.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ringzero.errors import HostError, MissingToolError

KEYS = Path(__file__).parent / "keys.asc"
_GPGV_PATIENCE = 60
# Of a signature that is good by a key that is. One by a key that has expired or was revoked is
# VALIDSIG, too (gnupg, doc/DETAILS). Lines: what a signature says of itself stands within some.
_GOOD, _BAD = "[GNUPG:] GOODSIG ", "[GNUPG:] BADSIG "


def verified(signed: bytes, keys: Path | None = None) -> str:
    """Return the text that `signed` holds when a key of `keys` has signed it.

    Raises HostError when none has that has not expired and was not revoked, MissingToolError where
    nothing can check it.
    """
    for check in (_by_gpgv, _by_sequoia):
        text = check(signed, keys or KEYS)
        if text is not None:
            return text
    raise _nothing_checks()


def require() -> None:
    """Raise MissingToolError where nothing can check a signature: before anything is fetched."""
    if shutil.which("gpgv") is None and importlib.util.find_spec("pysequoia") is None:
        raise _nothing_checks()


def _nothing_checks() -> MissingToolError:
    return MissingToolError(
        "the signature of Debian's archive cannot be checked here",
        hint="install gpgv (of GnuPG), or pip install 'ringzero[debian]'; a kernel of your own "
        "needs neither: --kernel FILE",
    )


def _by_gpgv(signed: bytes, keys: Path) -> str | None:
    program = shutil.which("gpgv")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="ringzero-") as place:
        keyring = Path(place) / "keyring.gpg"
        keyring.write_bytes(_binary(keys))
        done = subprocess.run(
            [program, "--homedir", place, "--keyring", str(keyring), "--status-fd", "2",
             "--output", "-", "-"],
            input=signed,
            capture_output=True,
            timeout=_GPGV_PATIENCE,
            check=False,
        )  # fmt: skip
    # A Release file has several signatures, and we need not know all who made them.
    said = done.stderr.decode("utf-8", "replace").split("\n")
    good = any(line.startswith(_GOOD) for line in said)
    if not good or any(line.startswith(_BAD) for line in said):
        raise _bad([line for line in said if not line.startswith("[GNUPG:]")][-1:])
    return done.stdout.decode("utf-8", "replace")


def _by_sequoia(signed: bytes, keys: Path) -> str | None:
    try:
        import pysequoia
    except ImportError:
        return None
    now = datetime.now(UTC)
    certificates = [
        certificate
        for certificate in pysequoia.Cert.split_bytes(_binary(keys))
        if not certificate.is_revoked
        and (certificate.expiration is None or certificate.expiration > now)
    ]
    known: Callable[[list[str]], object] = lambda _: certificates  # noqa: E731 - an argument
    try:
        found = pysequoia.verify(signed, store=known)
    except Exception as fault:  # of Rust's, of no class of its own
        raise _bad([str(fault)]) from fault
    if not found.valid_sigs or found.bytes is None:
        raise _bad(["no valid signature"])
    return bytes(found.bytes).decode("utf-8", "replace")


def _bad(reason: list[str]) -> HostError:
    return HostError(
        f"the signature of Debian's archive is not good: {''.join(reason)[:200] or 'none'}",
        hint="a mirror that is not Debian's own needs its key: RINGZERO_MIRROR_KEYS=FILE",
    )


def _binary(keys: Path) -> bytes:
    """Return a keyring as gpgv reads it: of several armored blocks, the content."""
    import base64

    data = keys.read_bytes()
    if not data.startswith(b"-----BEGIN PGP"):
        return data
    found = b""
    for block in data.split(b"-----BEGIN PGP PUBLIC KEY BLOCK-----")[1:]:
        body = block.partition(b"-----END")[0]
        # Headers end with an empty line; a checksum begins with "=".
        lines = body.replace(b"\r", b"").partition(b"\n\n")[2].split(b"\n")
        found += base64.b64decode(b"".join(line for line in lines if line[:1] != b"="))
    return found
