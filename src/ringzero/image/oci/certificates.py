"""Whom we trust: the certificates of registries, as Docker and containers keep them.

    certs.d/HOST[:PORT]/*.crt           authorities that sign the registry's certificate
    certs.d/HOST[:PORT]/NAME.cert, .key   what we show it of ourselves

containers-certs.d(5), and "Verify repository client with certificates" of Docker's manual. The
first of the folders that has one for the registry is the one; the authorities in it are trusted
besides those of this host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ringzero.errors import HostError
from ringzero.records import record
from ringzero.settings import CERTS_DIR

if TYPE_CHECKING:
    import ssl

_SYSTEM = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_TLS_PORT = ":443"
# Without one the library asks at the terminal, in mid-pull.
_NO_PASSWORD = ""


@record
class Trust:
    """What the user says of TLS: whether certificates are checked; `folder` holds them."""

    verify: bool = True
    folder: Path | None = None


def folder(host: str) -> Path | None:
    """Return the folder with the certificates for the server HOST[:PORT], or None."""
    names = (host, host.removesuffix(_TLS_PORT))
    for place in _places():
        for name in names:
            # A host's name has no slash in it, and is not "..".
            if (found := place / name).is_dir() and name.strip("."):
                return found
    return None


def context(certificates: Path | None, *, verify: bool = True) -> ssl.SSLContext:
    """Return how TLS is spoken with a server whose certificates lie in a folder.

    Raises HostError for a certificate or a key that cannot be read.
    """
    import ssl

    made = ssl.create_default_context()
    if not verify:
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    if certificates is None:
        return made
    for path in sorted(certificates.iterdir()):
        key = path.with_suffix(".key")
        try:
            if path.suffix == ".crt":
                made.load_verify_locations(path)
            elif path.suffix == ".cert" and not key.exists():
                raise HostError(f"{path} has no key beside it", hint=f"it belongs into {key}")
            elif path.suffix == ".cert":
                made.load_cert_chain(path, key, _NO_PASSWORD)
        except OSError as fault:
            # ssl.SSLError is one.
            reason = getattr(fault, "reason", None) or fault.strerror or str(fault)
            raise HostError(
                f"cannot take the certificate {path}: {reason}",
                hint="certificates and keys are PEM files that you may read",
            ) from fault
    return made


def _places() -> Iterator[Path]:
    if own := CERTS_DIR.get():
        yield own
    base = os.environ.get("XDG_CONFIG_HOME") or os.environ.get("HOME", "") + "/.config"
    if base.startswith("/"):
        yield Path(base) / "containers" / "certs.d"
        yield Path(base) / "docker" / "certs.d"
    yield from map(Path, _SYSTEM)
