"""The directories of deployments: made, looked at and removed by any process.

`RINGZERO_DATA_DIR/deployments` holds one directory (mode 0700) for each deployment:

    state.json        which version is live, the ports of the host that it chose
    versions/N.json   each version: the description with its images pinned, what came of it
    volumes/NAME      folders that services have by a name
    lock              held by the deployment's process as long as it lives
    socket            where it answers
    log               what it did, and what went wrong

What is not there is no deployment. Files are replaced whole; of versions the last KEPT are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, TypeVar

from ringzero.config.device import NAME
from ringzero.deployment.description import Deployment
from ringzero.errors import (
    ConflictError,
    ControlError,
    HostError,
    InvalidValueError,
    NotFoundError,
    RingzeroError,
    StateError,
)
from ringzero.host import ofdlock
from ringzero.host.files import host_error, make_directory, open_regular, remove_tree, sync_file
from ringzero.host.process import detach
from ringzero.host.unixsocket import reach
from ringzero.plain import MisfitError, from_plain, to_plain
from ringzero.records import field, record
from ringzero.settings import CACHE_DIR, DATA_DIR, MACHINES_DIR, NETWORKS_DIR

T = TypeVar("T")

STATE, VERSIONS, VOLUMES, LOCK, SOCKET, LOG = (
    *("state.json", "versions", "volumes", "lock", "socket", "log"),
)
# Versions that are kept, the live one among them.
KEPT = 10
# A version is a few kilobytes; a long environment makes it larger.
_LARGEST = 1 << 20
# How long a deployment's process may take to answer, in seconds; 0.3 where the host is idle.
_PATIENCE, _PAUSE = 30.0, 0.01
# One that ends at once is started so often, after so many seconds each.
_TRIES, _AGAIN = 4, 1.0
# Of the log, what is kept, in bytes.
_LOG_LIMIT = 1 << 20
_PLACE = "set RINGZERO_DATA_DIR to a directory that you can write to"
# -P: the current directory is no place to import from.
_PROGRAM = (sys.executable, "-P", "-m", "ringzero.deployment")

# What came of a version. PENDING: it is being rolled out, or whoever did so was killed.
PENDING, LIVE, REPLACED, FAILED = "pending", "live", "replaced", "failed"


@record
class Version:
    """One version. `made` and `ended` are in seconds since 1970.

    `outcome` is PENDING, LIVE, REPLACED or FAILED, `reason` why it failed; `origin` is the file
    that it was read from, or what was gone back to.
    """

    number: int
    made: float
    deployment: Deployment
    outcome: str = PENDING
    reason: str = ""
    origin: str = ""


@record
class State:
    """`live` is the number of the version that serves, 0 for none.

    `ports` are the ports of the host by "SERVICE/GUEST PORT" where any free one was asked for.
    `paused` are machines of the live version that were ended for the one that is being rolled
    out: whoever finds them so starts them again.
    """

    live: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    paused: tuple[str, ...] = ()


class DeploymentDirectory:
    """One deployment's directory, as any process may see it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name

    @property
    def exists(self) -> bool:
        """Whether there is such a deployment."""
        return (self.path / LOCK).exists()

    @property
    def alive(self) -> bool:
        """Whether the deployment's process runs."""
        try:
            return ofdlock.is_held(self.path / LOCK)
        except OSError:
            return False

    # ---- what is written down -----------------------------------------------

    def state(self) -> State:
        """Return which version serves. Raises StateError for what is not readable."""
        if not (self.path / STATE).exists():
            return State()
        return _load(State, self.path / STATE)

    def write_state(self, state: State) -> None:
        """Replace it. Raises HostError."""
        _save(state, self.path / STATE)

    def numbers(self) -> list[int]:
        """Return the numbers of the versions that are kept, in their order."""
        found = [path.stem for path in (self.path / VERSIONS).glob("*.json")]
        return sorted(int(text) for text in found if text.isdecimal())

    def version(self, number: int) -> Version:
        """Return a version. Raises NotFoundError, StateError."""
        path = self._place(number)
        if not path.exists():
            known = ", ".join(map(str, self.numbers()))
            raise NotFoundError(
                f"{self.name} has no version {number}",
                hint=f"`ringzero deploy history {self.name}` lists them: {known or 'none'}",
            )
        return _load(Version, path)

    def versions(self) -> list[Version]:
        """Return the versions that can be read, in their order."""
        found = []
        for number in self.numbers():
            with contextlib.suppress(StateError, NotFoundError):
                found.append(self.version(number))
        return found

    def live(self) -> Version | None:
        """Return the version that serves. Raises StateError."""
        number = self.state().live
        return self.version(number) if number else None

    def write_version(self, version: Version) -> None:
        """Replace or add one; of old ones those that need not be kept go. Raises HostError."""
        _save(version, self._place(version.number))
        keep = {version.number, self.state().live}
        for number in self.numbers()[:-KEPT]:
            if number not in keep:
                with contextlib.suppress(OSError):
                    self._place(number).unlink()

    def _place(self, number: int) -> Path:
        return self.path / VERSIONS / f"{number}.json"

    # ---- the process ----------------------------------------------------------

    def make(self) -> None:
        """Make the directory where there is none. Raises HostError."""
        try:
            root().mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            (self.path / VERSIONS).mkdir(mode=0o700, exist_ok=True)
            (self.path / LOCK).touch(0o600)
        except OSError as fault:
            raise host_error(fault, "create", self.path, _PLACE) from fault

    def connect(self) -> socket.socket:
        """Return a connection to the deployment's process, which is started if need be.

        Raises NotFoundError, HostError, ControlError.
        """
        deadline, launched, tries = time.monotonic() + _PATIENCE, -_AGAIN, 0
        while True:
            if not self.exists:
                raise not_found(self.name)
            link = self.try_connect()
            if link is not None:
                return link
            now = time.monotonic()
            if now > deadline:
                raise ControlError(
                    f"the process of the deployment {self.name!r} does not answer",
                    hint=f"see {self.path / LOG}",
                )
            if not self.alive and now - launched > _AGAIN:
                if tries >= _TRIES:
                    raise ControlError(
                        f"the process of the deployment {self.name!r} does not start: "
                        f"{self.said()}",
                        hint=f"see {self.path / LOG}",
                    )
                self._launch()
                launched, tries = time.monotonic(), tries + 1
            time.sleep(_PAUSE)

    def try_connect(self) -> socket.socket | None:
        """Return a connection to the deployment's process, or None where there is none.

        Raises HostError where this process has no descriptor left for it.
        """
        return reach(self.path, SOCKET)

    def said(self) -> str:
        """Return the last line of the log."""
        try:
            with os.fdopen(open_regular(self.path / LOG), "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _launch(self) -> None:
        """Start the deployment's process; of several the first one stays. Raises HostError."""
        # It has another current directory.
        settings = (CACHE_DIR, DATA_DIR, MACHINES_DIR, NETWORKS_DIR)
        places = {setting.name: str(setting.get().absolute()) for setting in settings}
        path = self.path / LOG
        try:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size > _LOG_LIMIT:
                    path.replace(path.with_name(f"{LOG}.1"))
            detach([*_PROGRAM, str(self.path)], path, places)
        except OSError as fault:
            raise host_error(fault, "start the process of", self.path, _PLACE) from fault

    # ---- the end --------------------------------------------------------------

    def remove(self, *, volumes: bool) -> None:
        """Remove what is kept of a deployment whose process has ended. Raises ConflictError."""
        if self.alive:
            raise ConflictError(
                f"the deployment {self.name!r} is in use", hint="try again in a moment"
            )
        try:
            # First what makes a deployment of it.
            (self.path / LOCK).unlink(missing_ok=True)
            for path in self.path.iterdir():
                if path.name != VOLUMES:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if volumes:
                remove_tree(self.path)
            elif not (self.path / VOLUMES).exists():
                self.path.rmdir()
        except OSError as fault:
            raise host_error(fault, "remove", self.path, _PLACE) from fault


def root() -> Path:
    """Return the directory of all deployments."""
    return DATA_DIR.get() / "deployments"


def volume(deployment: str, name: str) -> Path:
    """Return the folder that a deployment's services have by a name."""
    return root() / deployment / VOLUMES / name


def place(name: str) -> DeploymentDirectory:
    """Return the directory of the deployment called `name`, be it there or not.

    Raises InvalidValueError.
    """
    if not NAME.fullmatch(name):
        raise InvalidValueError(
            f"no deployment is called {name!r}", hint="use letters, digits, '_', '.' and '-'"
        )
    return DeploymentDirectory(root() / name)


def find(name: str | None) -> DeploymentDirectory:
    """Return the deployment called `name`, or the only one. Raises NotFoundError, ConflictError."""
    if name is not None:
        found = place(name)
        if not found.exists:
            raise not_found(name)
        return found
    known = deployments()
    if not known:
        raise NotFoundError(
            "nothing is deployed",
            hint="`ringzero deploy -f run.toml` deploys what a file describes",
        )
    if len(known) > 1:
        names = ", ".join(entry.name for entry in known)
        raise InvalidValueError("which deployment?", hint=f"give its name: {names}")
    return known[0]


def deployments() -> list[DeploymentDirectory]:
    """Return the directories of all deployments, by name."""
    try:
        entries = sorted(root().iterdir())
    except OSError:
        return []
    found = [DeploymentDirectory(entry) for entry in entries if NAME.fullmatch(entry.name)]
    return [entry for entry in found if entry.exists]


def users_of(digest: str) -> list[str]:
    """Return the versions that are kept and have the image with this digest, for people."""
    return [
        f"{place.name} version {version.number}"
        for place in deployments()
        for version in place.versions()
        if any(service.digest == digest for service in version.deployment.services)
    ]


def not_found(name: str) -> NotFoundError:
    """Return the error for a name that no deployment has."""
    known = ", ".join(entry.name for entry in deployments())
    return NotFoundError(
        f"no deployment is called {name!r}",
        hint=f"there are: {known}" if known else "nothing is deployed",
    )


def _load(kind: type[T], path: Path) -> T:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            found: T = from_plain(kind, json.loads(file.read(_LARGEST)))
    except (OSError, ValueError, RecursionError, MisfitError, RingzeroError) as fault:
        told = getattr(fault, "reason", None) or getattr(fault, "strerror", None) or fault
        raise StateError(
            f"{path} is not readable: {told}",
            hint="remove the file, or the deployment's directory, and deploy again",
            path=path,
        ) from fault
    return found


def _save(value: Any, path: Path) -> None:
    """Replace a file, whole and on the disk: readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make_directory(path.parent)
        temporary.touch(0o600)
        temporary.write_text(json.dumps(to_plain(value)) + "\n")
        sync_file(temporary)
        temporary.replace(path)
        sync_file(path.parent)
    except (OSError, HostError) as fault:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(fault, HostError):
            raise
        raise host_error(fault, "write", path, _PLACE) from fault
