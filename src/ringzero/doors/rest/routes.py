"""Which action a request asks for, read from the table of actions. No I/O.

Each action has one path: `/v1/ACTION` of the host, `/v1/machines/NAME/ACTION` of a machine, by GET
where it only reads, else by POST. Those that people expect elsewhere have a second one.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ringzero.api.action import Action, Argument, Scope
from ringzero.api.table import ACTIONS
from ringzero.errors import InvalidValueError, NotFoundError, RingzeroError
from ringzero.records import field, record

ROOT = "v1"
_BOOLS = {"true": True, "1": True, "yes": True, "": True, "false": False, "0": False, "no": False}
# Of errors, by kind; what is not here is the host's or the guest's fault (500).
STATUSES = {
    "invalid-value": 400,
    "config": 400,
    "forbidden": 403,
    "not-found": 404,
    "missing-file": 404,
    "conflict": 409,
    "disk-locked": 409,
    "too-long": 413,
    "engine-unavailable": 501,
    "disk-unsupported": 501,
    "control": 502,
    "protocol": 502,
    "timeout": 504,
}
# Second paths: (method, path) to the action; {name} is the machine's, or an argument's value.
_FAMILIAR = {
    ("GET", "machines"): "machines",
    ("POST", "machines"): "define",
    ("GET", "machines/{machine}"): "inspect",
    ("DELETE", "machines/{machine}"): "remove",
    ("GET", "machines/{machine}/archive"): "get_archive",
    ("PUT", "machines/{machine}/archive"): "put_archive",
    ("GET", "storage-pools"): "storage_pools",
    ("POST", "storage-pools"): "define_storage_pool",
    ("PATCH", "storage-pools/{name}"): "change_storage_pool",
    ("DELETE", "storage-pools/{name}"): "undefine_storage_pool",
    ("GET", "storage-pools/{pool}/volumes"): "volumes",
    ("POST", "storage-pools/{pool}/volumes"): "create_volume",
    ("DELETE", "storage-pools/{pool}/volumes/{name}"): "remove_volume",
    ("GET", "storage-pools/{pool}/volumes/{name}/content"): "get_volume",
    ("PUT", "storage-pools/{pool}/volumes/{name}/content"): "put_volume",
    ("POST", "networks"): "create_network",
    ("DELETE", "networks/{name}"): "remove_network",
}


class MethodError(RingzeroError):
    """A path that there is, by another method."""

    kind = "method"

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        super().__init__(f"{method} is not for this path", hint=f"use {' or '.join(allowed)}")
        self.allowed = allowed


@record
class Route:
    """A method and a path, whose parts in braces are values, and the action."""

    method: str
    parts: tuple[str, ...]
    action: Action

    @property
    def path(self) -> str:
        """The path as it is written in the API's description."""
        return "/" + "/".join((ROOT, *self.parts))

    def match(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the values in a path, or None where it is another."""
        if len(segments) != len(self.parts):
            return None
        found = dict[str, str]()
        for part, segment in zip(self.parts, segments, strict=True):
            if part.startswith("{"):
                found[part[1:-1]] = segment
            elif part != segment:
                return None
        return found


@record
class Call:
    """What is asked for: an action, of a machine or of the host."""

    action: Action
    machine: str | None
    arguments: dict[str, Any] = field(default_factory=dict)


def _routes() -> Iterator[Route]:
    for action in ACTIONS.values():
        before = ("machines", "{machine}") if action.scope is Scope.MACHINE else ()
        yield Route("GET" if action.reads else "POST", (*before, action.name), action)
    for (method, path), name in _FAMILIAR.items():
        route = Route(method, tuple(path.split("/")), ACTIONS[name])
        if (method, path) != ("GET", name):
            yield route


ROUTES = tuple(_routes())


def find(method: str, segments: Sequence[str], query: Sequence[tuple[str, str]]) -> Call:
    """Return what a request asks for; `segments` stand behind the version.

    Raises NotFoundError, MethodError, InvalidValueError.
    """
    method = "GET" if method == "HEAD" else method
    found = [(route, values) for route in ROUTES if (values := route.match(segments)) is not None]
    if not found:
        raise NotFoundError(
            f"there is no path /{ROOT}/{'/'.join(segments)[:200]}",
            hint=f"/{ROOT}/openapi.json describes all",
        )
    for route, values in found:
        if route.method == method:
            machine = values.pop("machine", None)
            arguments = read_query(route.action, query) | values
            return Call(route.action, machine, arguments)
    raise MethodError(method, sorted({route.method for route, _ in found}))


def find_stream(segments: Sequence[str], query: Sequence[tuple[str, str]]) -> Call:
    """Return what a request for a WebSocket asks for, by whichever method it is else.

    Raises NotFoundError, InvalidValueError.
    """
    for route in ROUTES:
        values = route.match(segments)
        if values is not None and route.action.wants_stream:
            machine = values.pop("machine", None)
            return Call(route.action, machine, read_query(route.action, query) | values)
    find("GET", segments, [])
    raise InvalidValueError("there is no WebSocket at this path", hint="ask without Upgrade")


def read_query(action: Action, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return arguments that stand behind the question mark. Raises InvalidValueError."""
    known = {argument.name: argument for argument in action.arguments}
    found = dict[str, Any]()
    for name, text in query:
        argument = known.get(name)
        if argument is None:
            raise InvalidValueError(
                f"{action.name} takes no argument {name[:64]!r}",
                hint=f"known: {', '.join(known)}" if known else None,
            )
        value = _read(argument, text)
        if isinstance(value, list):
            found.setdefault(name, []).extend(value)
        elif name in found:
            raise InvalidValueError(f"the argument {name!r} stands there twice")
        else:
            found[name] = value
    return found


def _read(argument: Argument, text: str) -> Any:
    kind = next(option for option in argument.options if option is not types.NoneType)
    try:
        if kind is bool:
            return _BOOLS[text.lower()]
        if kind in (int, float):
            return kind(text)
    except (KeyError, ValueError):
        raise InvalidValueError(
            f"the argument {argument.name!r} cannot be {text[:64]!r}",
            hint="true or false" if kind is bool else "write a number",
        ) from None
    if kind is str:
        return text
    if kind == list[str]:
        return [text]
    raise InvalidValueError(f"the argument {argument.name!r} belongs in the body, as JSON")


def status_of(fault: RingzeroError) -> int:
    """Return the HTTP status that an error is."""
    return 405 if isinstance(fault, MethodError) else STATUSES.get(fault.kind, 500)


def merged(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a request's path, query and body. Raises InvalidValueError."""
    double = sorted(set(call.arguments) & set(body))
    if double:
        raise InvalidValueError(f"the argument {double[0]!r} stands in the path and in the body")
    return {**call.arguments, **body}
