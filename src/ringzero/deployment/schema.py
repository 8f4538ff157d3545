"""The JSON schema of run.toml, for editors: made from the records that the file is read into.

    ringzero deploy --schema >run.schema.json

Draft 2020-12. It takes all that `ringzero.deployment.file` takes. What depends on other services,
on this host or on two keys at once is told by `deploy --dry-run`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

from ringzero.config.ports import Forward
from ringzero.deployment import description as kinds
from ringzero.deployment.description import (
    MOST_REPLICAS,
    ON_FAILURE,
    ORDERS,
    RESTARTS,
    Check,
    Restart,
    Secret,
    Service,
    Update,
)
from ringzero.deployment.file import HTTP_ADDRESS, MOST_CPUS, MOST_PARALLEL, MOST_RETRIES, VARIABLE
from ringzero.deployment.reading import LEAST_SIZE, LONGEST_TIME
from ringzero.units import DURATION, SIZE

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_WORDS: dict[str, Any] = {
    "anyOf": [_TEXT, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}
_SIZE: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": LEAST_SIZE},
        {"type": "string", "pattern": f"^(?:{SIZE})$"},
    ]
}
_TIME: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": LONGEST_TIME},
        {"type": "string", "pattern": f"^(?:0|(?:{DURATION})+)$"},
    ]
}
_PORT: dict[str, Any] = {"type": "integer", "minimum": 1, "maximum": 65535}
# What a key is called in the file, where that is not its field's name; None: in no file.
_CALLED: dict[str, str | None] = {"stop": "stop_timeout", "name": None, "digest": None}
# Numbers with bounds of their own.
_COUNTS = {
    "cpus": (1, MOST_CPUS),
    "replicas": (0, MOST_REPLICAS),
    "parallel": (1, MOST_PARALLEL),
    "retries": (1, MOST_RETRIES),
}
_ABOUT = {
    "image": "as `ringzero run` takes it; pinned by its digest",
    "command": "in place of the image's: words, or a text that is split as shells do",
    "entrypoint": "in place of the image's",
    "memory": "of each machine: 512M, 2G",
    "cpus": "of each machine",
    "cpu": "CPU model",
    "engine": "auto, soft or kvm",
    "ports": "[ADDRESS:]HOST:GUEST; HOST 0 is any free one",
    "mounts": "FOLDER:DIRECTORY[:ro], relative to the file; NAME:DIRECTORY is a volume",
    "disks": "FILE[,ro][,format=NAME]",
    "networks": "as `--net` takes them",
    "env": "variables of the command",
    "secrets": "variables of the command whose values are read when it starts",
    "workdir": "of the command",
    "user": "USER[:GROUP] of the command",
    "replicas": "how many machines",
    "check": "what tells whether a machine is well",
    "restart": "when a machine that has ended is started again",
    "update": "how a new version comes",
    "drain": "what connections to a machine that goes may take",
    "stop_timeout": "what the end of a machine that goes may take",
    "after": "services that are well before this one starts",
}


def schema() -> dict[str, Any]:
    """Return the schema of a file as plain data."""
    name = {**_TEXT, "description": "of the deployment (default: the folder's)"}
    service = _service()
    alone = {**service, "properties": {"name": name, **service["properties"]}}
    several = {
        "properties": {
            "name": name,
            "services": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"$ref": "#/$defs/service"},
                "description": "by their names",
            },
        },
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        "title": "run.toml of ringzero",
        "description": "services that `ringzero deploy` brings a host to",
        "type": "object",
        "if": {"required": ["services"]},
        "then": several,
        "else": alone,
        "$defs": {"service": service},
    }


def _service() -> dict[str, Any]:
    return {**_object(_properties(Service)), "required": ["image"]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _properties(record: type) -> dict[str, Any]:
    """Return the keys of a record's table."""
    found = {}
    for field, hint in get_type_hints(record).items():
        key = _CALLED.get(field, field) if record is Service else field
        if key is not None:
            about = {"description": _ABOUT[key]} if key in _ABOUT else {}
            found[key] = {**about, **_of(key, hint)}
    return found


def _of(key: str, hint: Any) -> dict[str, Any]:
    """Return what a key of a type may be. Raises TypeError for a type that no file has."""
    if key == "memory":
        return _SIZE
    if key in _COUNTS:
        least, most = _COUNTS[key]
        return {"type": "integer", "minimum": least, "maximum": most}
    if key == "order":
        return {"enum": list(ORDERS)}
    for known, made in _BY_TYPE:
        if hint in (known, known | None):
            return made()
    raise TypeError(f"no key of run.toml is of the type {hint}")


def _several(one: dict[str, Any]) -> dict[str, Any]:
    """Return a list; what is alone is a list of one."""
    return {"anyOf": [one, {"type": "array", "items": one}]}


def _check() -> dict[str, Any]:
    """A check is of one kind, whose key says how it asks."""
    asked: dict[str, Any] = {
        kinds.HTTP: {"type": "string", "minLength": 1, "pattern": f"^(?:{HTTP_ADDRESS})$"},
        kinds.TCP: _PORT,
        kinds.COMMAND: _WORDS,
        kinds.NO_CHECK: {"const": True},
    }
    hints = get_type_hints(Check)
    more = {name: _of(name, hints[name]) for name in hints if hints[name] is float}
    more["timeout"] = {"allOf": [more["timeout"], {"not": {"const": 0}}]}
    more["retries"] = _of("retries", int)
    return {
        **_object({**asked, **more}),
        "oneOf": [{"required": [kind]} for kind in asked],
    }


def _restart() -> dict[str, Any]:
    often = {"type": "string", "pattern": f"^{ON_FAILURE}:[0-9]{{1,6}}$"}
    return {"anyOf": [{"enum": list(RESTARTS)}, often]}


def _secret() -> dict[str, Any]:
    keys = _properties(Secret)
    return {**_object(keys), "oneOf": [{"required": [key]} for key in keys]}


def _variables(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^(?:{VARIABLE})$"},
        "additionalProperties": value,
    }


_BY_TYPE: tuple[tuple[Any, Callable[[], dict[str, Any]]], ...] = (
    (str, lambda: _TEXT),
    (float, lambda: _TIME),
    (tuple[str, ...] | None, lambda: _WORDS),
    (tuple[str, ...], lambda: _several({"type": "string"})),
    (tuple[Forward, ...], lambda: _several({"type": ["string", "integer"]})),
    (dict[str, str], lambda: _variables({"type": ["string", "number", "boolean"]})),
    (dict[str, Secret], lambda: _variables(_secret())),
    (Check, _check),
    (Restart, _restart),
    (Update, lambda: _object(_properties(Update))),
)
