"""Bearer tokens (RFC 6750): made once and shown, kept as digests, compared in constant time."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.config.device import NAME
from ringzero.control.host.records import read_json, write_json
from ringzero.doors.caller import Caller
from ringzero.errors import ConflictError, HostError, InvalidValueError, NotFoundError
from ringzero.host.files import host_error, locked
from ringzero.records import field_names, record

# So that a secret is known for one where it lies about.
_PREFIX = "rz_"
# 256 bits of chance.
_BYTES = 32
_FILE, _LOCK = "tokens.json", ".tokens.lock"


@record
class Token:
    """A token as it is kept: `digest` is SHA-256's of its text, in hexadecimal."""

    name: str
    digest: str
    reads: bool
    created: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without what would let somebody in."""
        return {"name": self.name, "read_only": self.reads, "created": self.created}


class Tokens:
    """The tokens in a directory, which is this user's own."""

    def __init__(self, where: Path) -> None:
        self._path = where / _FILE
        self._stamp: tuple[int, int, int] | None = None
        self._known: list[Token] = []

    def all(self) -> list[Token]:
        """Return the tokens by name. Raises HostError for a file that cannot be read as theirs."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._known = None, []
            return []
        except OSError as fault:
            raise host_error(fault, "read", self._path) from fault
        stamp = (found.st_ctime_ns, found.st_ino, found.st_mode)
        if stamp != self._stamp:
            self._known, self._stamp = self._read(found), stamp
        return self._known

    def create(self, name: str, *, reads: bool) -> str:
        """Make a token; return its text, which is kept nowhere. Raises ConflictError."""
        if not NAME.fullmatch(name):
            raise InvalidValueError(
                f"name {name!r}: use letters, digits, '_', '.' and '-'", hint="as in `laptop`"
            )
        text = _PREFIX + secrets.token_urlsafe(_BYTES)
        with self._changing():
            known = self.all()
            if any(token.name == name for token in known):
                raise ConflictError(
                    f"there is a token called {name!r}", hint=f"`ringzero serve token rm {name}`"
                )
            self._write([*known, Token(name, _digest(text), reads, time.time())])
        return text

    def remove(self, name: str) -> None:
        """Forget a token: it lets nobody in any more. Raises NotFoundError."""
        with self._changing():
            known = self.all()
            left = [token for token in known if token.name != name]
            if len(left) == len(known):
                raise NotFoundError(
                    f"no token is called {name!r}", hint="`ringzero serve token ls` lists them"
                )
            self._write(left)

    def caller(self, text: str) -> Caller | None:
        """Return who has the token with this text; None for nobody.

        All are compared, each in a time that does not tell how much of it was right.
        """
        digest, found = _digest(text), None
        for token in self.all():
            if hmac.compare_digest(token.digest, digest):
                found = token
        return None if found is None else Caller(f"token {found.name}", found.reads)

    def _read(self, found: os.stat_result) -> list[Token]:
        if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o077:
            raise HostError(
                f"others can read or write {self._path}",
                hint=f"`chmod 600 {self._path}`, or remove it and make new tokens",
                path=self._path,
            )
        data = read_json(self._path) or {}
        try:
            return [
                Token(str(t["name"]), str(t["digest"]), bool(t["reads"]), float(t["created"]))
                for t in data["tokens"]
            ]
        except (KeyError, TypeError, ValueError) as fault:
            raise HostError(
                f"{self._path} does not hold tokens",
                hint="remove it, and make new ones: `ringzero serve token create NAME`",
                path=self._path,
            ) from fault

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Be the only one who changes them: one that was removed does not come back."""
        where = self._path.parent
        try:
            where.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as fault:
            raise host_error(fault, "create", where) from fault
        with locked(where / _LOCK):
            yield

    def _write(self, tokens: list[Token]) -> None:
        names = field_names(Token)
        kept = [{name: getattr(token, name) for name in names} for token in tokens]
        write_json(self._path, {"tokens": kept})


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
