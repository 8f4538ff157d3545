"""Deploys, looks and goes back: what the command line and Python's users call.

    import ringzero

    ringzero.deploy("run.toml")
    ringzero.deploy({"name": "web", "image": "web:2", "ports": ["8080:80"]})

The work is the deployment's process's (`supervisor`), which is started where there is none.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ringzero.deployment import directory, file
from ringzero.deployment.description import Deployment
from ringzero.deployment.directory import DeploymentDirectory, Version
from ringzero.deployment.plan import ServiceChange, changes
from ringzero.deployment.wire import Link
from ringzero.errors import (
    ControlError,
    InvalidValueError,
    ProtocolError,
    RingzeroError,
    from_dict,
)
from ringzero.host.progress import QUIET, Progress
from ringzero.plain import to_plain
from ringzero.records import replace

# How long a rollout may take, in seconds.
TIMEOUT = 300.0
# Beyond it, for the way back; and how long any other answer may take.
_BACK, _PATIENCE = 120.0, 60.0
# How long a process that is about to end is asked again, until another one answers, in seconds;
# and between two tries.
_CHANGING, _PAUSE = 20.0, 0.02
# How long a process may take to be gone after it said so, in seconds.
_GONE_WITHIN = 10.0


class MachineFacts(TypedDict):
    """A machine of a service. `state` is starting, healthy, unhealthy, waiting or ended."""

    machine: str
    service: str
    version: int
    state: str
    since: float
    restarts: int
    reason: str
    answer: str
    ports: dict[str, int]


class PortFacts(TypedDict):
    """A port of the host that leads to a service; `port` is None where it could not be had."""

    address: str
    port: int | None
    guest_port: int
    connections: NotRequired[int]
    open: NotRequired[int]
    waiting: NotRequired[int]
    lost: NotRequired[int]


class ServiceFacts(TypedDict):
    """A service, its machines and its ports."""

    service: str
    image: str
    digest: str
    replicas: int
    machines: list[MachineFacts]
    ports: list[PortFacts]


class Status(TypedDict):
    """A deployment: `version` is the one that serves, 0 for none."""

    name: str
    version: int
    since: float | None
    rolling_out: int | None
    services: list[ServiceFacts]
    pid: int
    directory: str


class Result(TypedDict):
    """What came of `deploy` and `rollback`: the version that serves, and whether it is new.

    `started` are machines that had ended by a fault and run again. `accepted` says that nobody
    waited for the end.
    """

    name: str
    version: int
    changed: bool
    started: list[str]
    accepted: bool


class Plan(TypedDict):
    """What `deploy` would do: `live` is the version that serves now, 0 for none."""

    name: str
    live: int
    changes: list[ServiceChange]
    pulled: list[str]


class Listed(TypedDict):
    """A deployment in the list; `running` says whether its process is there."""

    name: str
    version: int
    made: float | None
    services: list[str]
    running: bool


class Entry(TypedDict):
    """A version in the history. `outcome` is pending, live, replaced or failed."""

    version: int
    made: float
    outcome: str
    reason: str
    origin: str
    images: dict[str, str]


Tell = Callable[[str], None]


def deploy(
    source: str | Path | Mapping[str, Any] = file.DEFAULT,
    *,
    name: str | None = None,
    force: bool = False,
    wait: bool = True,
    timeout: float = TIMEOUT,
    progress: Progress = QUIET,
    tell: Tell | None = None,
) -> Result:
    """Bring this host to what a file (run.toml), or a mapping of the same keys, describes.

    Nothing happens where it is so already; with `force` all machines are made anew. Without
    `wait`, return as soon as it has begun. `tell` hears of each step. Raises ConfigError with all
    that is wrong with the description, NotFoundError, HostError, ConflictError, and DeployError
    where the new version did not come up within `timeout` seconds and the old one serves.
    """
    from ringzero.deployment import machine

    found = file.read(source, name)
    deployment = found.deployment
    variables = _variables(deployment, required=True)
    pinned = tuple(machine.pin(service, progress=progress) for service in deployment.services)
    deployment = replace(deployment, services=pinned)
    place = directory.place(deployment.name)
    place.make()
    for service in deployment.services:
        _make_volumes(place, service.mounts)
    question = {
        "ask": "deploy",
        "deployment": to_plain(deployment),
        "origin": found.path or "Python",
        "force": force,
        "timeout": timeout,
        "environment": variables,
    }
    try:
        return _change(place, question, wait=wait, timeout=timeout, tell=tell)
    finally:
        _forget_if_empty(place)


def plan(source: str | Path | Mapping[str, Any] = file.DEFAULT, *, name: str | None = None) -> Plan:
    """Return what `deploy` would change; nothing is pulled or started. Raises ConfigError."""
    from ringzero.deployment import machine

    deployment = file.read(source, name).deployment
    place = directory.place(deployment.name)
    live = place.live() if place.exists else None
    pulled = [s.image for s in deployment.services if not machine.is_here(s)]
    services = [s if s.image in pulled else machine.pin(s) for s in deployment.services]
    return {
        "name": deployment.name,
        "live": live.number if live is not None else 0,
        "changes": changes(
            live.deployment if live is not None else None,
            replace(deployment, services=tuple(services)),
        ),
        "pulled": list(dict.fromkeys(pulled)),
    }


def rollback(
    name: str | None = None,
    to: int | None = None,
    *,
    wait: bool = True,
    timeout: float = TIMEOUT,
    tell: Tell | None = None,
) -> Result:
    """Go back to version `to`, or to the last one that served before this one.

    Raises NotFoundError, ConflictError, DeployError.
    """
    place = directory.find(name)
    variables = dict[str, str]()
    for version in place.versions():
        variables |= _variables(version.deployment, required=False)
    if to is not None:
        place.version(to)
    question = {
        "ask": "rollback",
        "version": to,
        "timeout": timeout,
        "environment": variables,
    }
    return _change(place, question, wait=wait, timeout=timeout, tell=tell)


def status(name: str | None = None) -> Status:
    """Return what there is of a deployment, or of the only one.

    Its process is started where it was killed. Raises NotFoundError, ControlError.
    """
    place = directory.find(name)
    found: Any = _ask(place, {"ask": "status"}, _PATIENCE)
    return found  # type: ignore[no-any-return]


def deployments() -> list[Listed]:
    """Return all deployments, by name; what is written down of them, and nobody is asked."""
    found: list[Listed] = []
    for place in directory.deployments():
        with contextlib.suppress(RingzeroError):
            live = place.live()
            services = live.deployment.services if live is not None else ()
            found.append(
                {
                    "name": place.name,
                    "version": live.number if live is not None else 0,
                    "made": live.made if live is not None else None,
                    "services": [service.name for service in services],
                    "running": place.alive,
                }
            )
    return found


def history(name: str | None = None) -> list[Entry]:
    """Return the versions that are kept, the last one first. Raises NotFoundError."""
    return [_entry(version) for version in reversed(directory.find(name).versions())]


def remove(name: str | None = None, *, volumes: bool = False) -> list[str]:
    """End a deployment's machines and forget it; return the machines' names.

    Its volumes stay, unless with `volumes`. Raises NotFoundError, ConflictError, ControlError.
    """
    place = directory.find(name)
    found: Any = _ask(place, {"ask": "remove"}, _PATIENCE + _BACK)
    deadline = time.monotonic() + _GONE_WITHIN
    while place.alive and time.monotonic() < deadline:
        time.sleep(0.01)
    place.remove(volumes=volumes)
    return list(found["machines"])


def _entry(version: Version) -> Entry:
    services = version.deployment.services
    return {
        "version": version.number,
        "made": version.made,
        "outcome": version.outcome,
        "reason": version.reason,
        "origin": version.origin,
        "images": {each.name: f"{each.image} {each.digest[:19]}" for each in services},
    }


def _forget_if_empty(place: DeploymentDirectory) -> None:
    """Leave nothing of a deployment that never was: not even its first version was written."""
    with contextlib.suppress(RingzeroError):
        if not place.numbers() and not place.alive:
            place.remove(volumes=False)


def _make_volumes(place: DeploymentDirectory, mounts: tuple[str, ...]) -> None:
    from ringzero.config.devices.share import ShareConfig
    from ringzero.host.files import make_directory

    for text in mounts:
        path = ShareConfig.parse(text).path
        if path.parent == place.path / directory.VOLUMES:
            make_directory(path)


def _variables(deployment: Deployment, *, required: bool) -> dict[str, str]:
    """Return the variables of this process that secrets are read from.

    Raises InvalidValueError for one that there is not, where it is `required`.
    """
    found = {}
    for service in deployment.services:
        for name, secret in service.secrets.items():
            if secret.env is None:
                continue
            if secret.env in os.environ:
                found[secret.env] = os.environ[secret.env]
            elif required:
                raise InvalidValueError(
                    f"{service.name}: the secret {name} is read from ${secret.env}, which is not "
                    "set",
                    hint=f"{secret.env}=... ringzero deploy",
                )
    return found


# ---- the process ------------------------------------------------------------


def _change(
    place: DeploymentDirectory,
    question: Mapping[str, Any],
    *,
    wait: bool,
    timeout: float,
    tell: Tell | None,
) -> Result:
    bound = timeout + _BACK
    with contextlib.closing(_messages(place, question, bound, tell)) as messages:
        for message in messages:
            if "accepted" in message and not wait:
                return _result(place, {"version": message["accepted"], "changed": True}, True)
            if tell is not None and isinstance(text := message.get("event"), str):
                tell(text)
            if "result" in message:
                return _result(place, message["result"], False)
    raise ControlError("the deployment's process ended the conversation")


def _result(place: DeploymentDirectory, found: Mapping[str, Any], accepted: bool) -> Result:
    return {
        "name": place.name,
        "version": int(found["version"]),
        "changed": bool(found["changed"]),
        "started": list(found.get("started", ())),
        "accepted": accepted,
    }


def _ask(place: DeploymentDirectory, question: Mapping[str, Any], bound: float) -> dict[str, Any]:
    with contextlib.closing(_messages(place, question, bound)) as messages:
        for message in messages:
            if "result" in message:
                return dict(message["result"])
    raise ControlError("the deployment's process ended the conversation")


def _messages(
    place: DeploymentDirectory,
    question: Mapping[str, Any],
    bound: float,
    tell: Tell | None = None,
) -> Generator[dict[str, Any], None, None]:
    """Ask, and yield what is said until the result. Raises the error that it is.

    Ctrl-C has what is under way taken back, and goes on when that has happened.
    """
    link, message = _begin(place, question, bound)
    try:
        while True:
            if isinstance(error := message.get("error"), dict):
                raise from_dict(error)
            yield message
            if "result" in message:
                return
            try:
                message = link.receive()
            except KeyboardInterrupt:
                if tell is not None:
                    tell("it is taken back; Ctrl-C again does not wait for that")
                link.send({"cancel": True})
                _await_end(link)
                raise
    finally:
        link.close()


def _await_end(link: Link) -> None:
    with contextlib.suppress(RingzeroError):
        while not {"result", "error"} & link.receive().keys():
            pass


def _begin(
    place: DeploymentDirectory, question: Mapping[str, Any], bound: float
) -> tuple[Link, dict[str, Any]]:
    """Return a connection, and the first message on it."""
    deadline = time.monotonic() + _CHANGING
    while True:
        link = Link(place.connect())
        link.settimeout(bound)
        try:
            link.send(question)
            return link, link.receive()
        except ProtocolError:
            link.close()
            raise
        except ControlError:
            # A process that has nothing to keep ends: it may have done so just now.
            link.close()
            if time.monotonic() > deadline or not place.exists:
                raise
            time.sleep(_PAUSE)
        except KeyboardInterrupt:
            link.send({"cancel": True})
            _await_end(link)
            link.close()
            raise
