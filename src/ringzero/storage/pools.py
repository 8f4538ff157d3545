"""Storage pools, each a directory of the host under a name, in a file of its own.

`RINGZERO_STORAGE_DIR` holds NAME.json (mode 0600) for each; a pool appears and changes by a rename.
The pool `default` is always there, unless another was defined under its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.config.device import NAME
from ringzero.errors import ConflictError, InvalidValueError, NotFoundError, StateError
from ringzero.host.files import host_error, locked, make_directory, open_regular
from ringzero.plain import MisfitError, from_plain, to_plain
from ringzero.records import record, replace
from ringzero.settings import DATA_DIR, STORAGE_DIR

DEFAULT = "default"
_SUFFIX = ".json"
# A pool's file is some hundred bytes.
_MAX_FILE = 64 << 10


@record
class StoragePool:
    """A pool: the directory `path`. One that is not `active` has no volumes for anybody.

    `autostart` says that it becomes active with `ringzero serve`.
    """

    name: str
    path: Path
    uuid: str
    active: bool = True
    autostart: bool = False

    def require_active(self) -> None:
        """Raise ConflictError where it is not active."""
        if not self.active:
            raise ConflictError(
                f"the storage pool {self.name!r} is not active",
                hint=f"`ringzero storage start {self.name}`",
            )


def pools() -> list[StoragePool]:
    """Return all pools by name. Raises HostError."""
    names = {DEFAULT} | {path.stem for path in _where().glob(f"*{_SUFFIX}")}
    found = []
    for name in sorted(names):
        # One may go away meanwhile.
        with contextlib.suppress(NotFoundError):
            if NAME.fullmatch(name):
                found.append(find(name))
    return found


def find(name: str) -> StoragePool:
    """Return the pool called `name`. Raises NotFoundError, StateError, HostError."""
    path = _file(name)
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            data: Any = json.loads(file.read(_MAX_FILE))
        pool: StoragePool = from_plain(StoragePool, {**data, "name": name})
    except FileNotFoundError:
        if name == DEFAULT:
            return StoragePool(DEFAULT, DATA_DIR.get() / "volumes", _made_uuid(DEFAULT))
        known = ", ".join(pool.name for pool in pools())
        raise NotFoundError(f"no storage pool called {name!r}", hint=f"known: {known}") from None
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    except (ValueError, TypeError, RecursionError, MisfitError) as fault:
        raise StateError(
            f"{path} does not describe a storage pool", hint="remove it, and define the pool anew"
        ) from fault
    return pool


def define(
    name: str, path: Path, *, identifier: str | None = None, active: bool = True
) -> StoragePool:
    """Define a pool, or define it anew; its directory is made when volumes are.

    Raises InvalidValueError, ConflictError where another has the directory or the UUID.
    """
    if not NAME.fullmatch(name):
        raise InvalidValueError(
            f"a storage pool cannot be called {name!r}",
            hint="use letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    try:
        unusable = b"\0" in os.fsencode(path)
    except UnicodeEncodeError:
        unusable = True
    if unusable:
        raise InvalidValueError(f"{str(path)[:64]!r} is no directory's path")
    try:
        chosen = _made_uuid(name) if identifier is None else str(uuid.UUID(identifier))
    except ValueError:
        raise InvalidValueError(f"{identifier!r} is no UUID") from None
    with _changing():
        for other in pools():
            if other.name == name:
                continue
            if other.uuid == chosen:
                raise ConflictError(f"the storage pool {other.name!r} has the UUID {chosen}")
            if Path(os.path.realpath(other.path)) == Path(os.path.realpath(path)):
                raise ConflictError(f"{path} is the storage pool {other.name!r} already")
        old = find(name) if _file(name).exists() else None
        if identifier is None and old is not None:
            chosen = old.uuid
        autostart = old.autostart if old is not None else False
        pool = StoragePool(name, path.absolute(), chosen, active, autostart)
        _save(pool)
    return pool


def change(name: str, *, active: bool | None = None, autostart: bool | None = None) -> StoragePool:
    """Change what is given, and leave the rest. Raises NotFoundError, HostError."""
    with _changing():
        pool = find(name)
        pool = replace(
            pool,
            active=pool.active if active is None else active,
            autostart=pool.autostart if autostart is None else autostart,
        )
        if pool.active:
            make_directory(pool.path)
        _save(pool)
    return pool


def undefine(name: str) -> None:
    """Forget a pool; its directory and files stay. Raises NotFoundError, ConflictError."""
    with _changing():
        pool = find(name)
        if pool.active and _file(name).exists():
            raise ConflictError(
                f"the storage pool {name!r} is active", hint=f"`ringzero storage stop {name}` first"
            )
        try:
            _file(name).unlink()
        except FileNotFoundError:
            raise ConflictError(
                f"the storage pool {name!r} is always there",
                hint="define another under its name",
            ) from None
        except OSError as fault:
            raise host_error(fault, "remove", _file(name)) from fault


def _where() -> Path:
    return STORAGE_DIR.get()


def _file(name: str) -> Path:
    # A name that nobody may give is no path either.
    return _where() / f"{name if NAME.fullmatch(name) else '.none'}{_SUFFIX}"


def _made_uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_where().as_uri()}/{name}"))


def _save(pool: StoragePool) -> None:
    path = _file(pool.name)
    temporary = path.with_name(f".{pool.name}.{os.getpid()}.new")
    try:
        temporary.touch(0o600)
        temporary.write_text(json.dumps(to_plain(pool)) + "\n")
        temporary.replace(path)
    except OSError as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise host_error(fault, "write", path) from fault


@contextlib.contextmanager
def _changing() -> Iterator[None]:
    """Be the only one who changes pools."""
    with locked(make_directory(_where()) / ".lock"):
        yield
