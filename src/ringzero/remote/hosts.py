"""Hosts by names of the user's own: where they are, and what lets one in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ringzero import basedirs
from ringzero.config.device import NAME
from ringzero.control.host.records import read_json, write_json
from ringzero.errors import ConflictError, HostError, InvalidValueError, NotFoundError
from ringzero.host.files import locked, make_directory
from ringzero.records import field_names, record
from ringzero.remote.address import Address

# Of command lines and of the environment: this host, whatever else is set.
LOCAL = "local"
_FILE, _LOCK = "hosts.json", ".hosts.lock"


@record
class NamedHost:
    """A host: its URL, and files with a token and with certificates, absolute, "" for none."""

    name: str
    url: str
    token_file: str = ""
    cacert: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return it as plain data."""
        return {name: getattr(self, name) for name in field_names(NamedHost)}


class Hosts:
    """The hosts that a user has named. Raises HostError."""

    def __init__(self, where: Path | None = None) -> None:
        self._where = where or _directory()

    def all(self) -> list[NamedHost]:
        """Return them by name."""
        found = (read_json(self._where / _FILE) or {}).get("hosts")
        hosts = []
        for each in found if isinstance(found, list) else ():
            with contextlib.suppress(TypeError, AttributeError):
                hosts.append(NamedHost(**{str(key): str(value) for key, value in each.items()}))
        return sorted(hosts, key=lambda host: host.name)

    def get(self, name: str) -> NamedHost:
        """Return the host called `name`. Raises NotFoundError."""
        for host in self.all():
            if host.name == name:
                return host
        raise NotFoundError(
            f"no host is called {name!r}",
            hint=f"`ringzero host add {name} ssh://...` names one; `ringzero host ls` lists them",
        )

    def add(self, host: NamedHost) -> None:
        """Add a host. Raises ConflictError where its name is taken, InvalidValueError."""
        if host.name == LOCAL or not NAME.fullmatch(host.name):
            raise InvalidValueError(
                f"{host.name!r} can be no host's name", hint="letters, digits, '_', '.' and '-'"
            )
        Address.parse(host.url)
        with self._changing():
            known = self.all()
            if any(other.name == host.name for other in known):
                raise ConflictError(
                    f"a host is called {host.name!r} already",
                    hint=f"`ringzero host rm {host.name}` forgets that one",
                )
            self._write([*known, host])

    def remove(self, name: str) -> None:
        """Forget a host. Raises NotFoundError."""
        with self._changing():
            gone = self.get(name)
            self._write([host for host in self.all() if host != gone])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        make_directory(self._where)
        with locked(self._where / _LOCK):
            yield

    def _write(self, hosts: list[NamedHost]) -> None:
        write_json(self._where / _FILE, {"hosts": [host.to_dict() for host in hosts]})


def _directory() -> Path:
    place = basedirs.ours(*basedirs.CONFIG)
    if not place:
        raise HostError("there is no home directory", hint="set HOME, or give --host a URL")
    return Path(place)
