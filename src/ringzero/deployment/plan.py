"""What lies between two versions: which services come, go or change, and in what."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, TypedDict

from ringzero.deployment.description import Deployment, Service
from ringzero.plain import to_plain
from ringzero.records import field_names
from ringzero.units import format_size

ADDED, REMOVED, REPLACED, ADJUSTED, SAME = "added", "removed", "replaced", "adjusted", "same"


class FieldChange(TypedDict):
    """A key of a service, with what it was and what it will be, as people write it."""

    key: str
    old: str
    new: str


class ServiceChange(TypedDict):
    """What becomes of a service: `how` is ADDED, REMOVED, REPLACED (its machines are others),
    ADJUSTED (they stay) or SAME.
    """

    service: str
    how: str
    image: str
    replicas: int
    fields: list[FieldChange]


def changes(old: Deployment | None, new: Deployment) -> list[ServiceChange]:
    """Return what becomes of each service, those that stay the same among them."""
    found = []
    for service in new.services:
        before = old.service(service.name) if old is not None else None
        fields = list(_fields(before, service)) if before is not None else []
        if before is None:
            how = ADDED
        elif before.spec() != service.spec():
            how = REPLACED
        else:
            how = ADJUSTED if fields else SAME
        found.append(_change(service, how, fields))
    for service in old.services if old is not None else ():
        if new.service(service.name) is None:
            found.append(_change(service, REMOVED, []))
    return found


def _change(service: Service, how: str, fields: list[FieldChange]) -> ServiceChange:
    return {
        "service": service.name,
        "how": how,
        "image": service.image,
        "replicas": service.replicas,
        "fields": fields,
    }


def _fields(old: Service, new: Service) -> Iterator[FieldChange]:
    for name in field_names(Service):
        before, after = getattr(old, name), getattr(new, name)
        if name == "digest" and "" in (before, after):
            # It was not asked for.
            continue
        if before != after:
            yield {"key": name, "old": _shown(name, before), "new": _shown(name, after)}


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "memory":
        return format_size(value)
    if name == "digest":
        return str(value)[: 7 + 12]
    if name == "command":
        return shlex.join(value)
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        # Of a secret this is where it is read from.
        return " ".join(f"{key}={_pair(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (str, int, float)) or name == "restart":
        return str(value)
    tree = {key: item for key, item in to_plain(value).items() if item not in (None, [], "")}
    return " ".join(f"{key}={_pair(item)}" for key, item in tree.items())


def _pair(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    source = getattr(value, "file", None)
    if source is not None:
        return f"<{source}>"
    variable = getattr(value, "env", None)
    return f"<${variable}>" if variable is not None else str(value)
