"""Keys for signatures that the command line is given: `image sign`, `push --sign` and their kin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringzero.image.oci.signing.keys import SigningKey


def private_key(path: str) -> SigningKey:
    """Return the private key in a file; its password is the setting's, or asked for at a terminal.

    Raises InvalidValueError, HostError, MissingToolError.
    """
    from ringzero.image.oci.signing import keys

    given = password()
    needed = given is None and sys.stdin.isatty() and _is_encrypted(Path(path))
    return keys.load_private(Path(path), _ask(f"password of {path}: ") if needed else given)


def password() -> bytes | None:
    """Return the password that the environment has for private keys."""
    from ringzero.settings import KEY_PASSWORD

    return KEY_PASSWORD.get().encode() or None


def new_password() -> bytes | None:
    """Ask for a password twice; none where nothing is typed. Raises InvalidValueError."""
    from ringzero.errors import InvalidValueError

    first = _ask("password of the private key (empty: none): ")
    if first and _ask("once more: ") != first:
        raise InvalidValueError("the two passwords differ", hint="nothing was written; try again")
    return first or None


def _is_encrypted(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"ENCRYPTED PRIVATE KEY" in file.read(4096)
    except OSError:
        return False


def _ask(prompt: str) -> bytes:
    from getpass import getpass

    return getpass(prompt, sys.stderr).encode()
