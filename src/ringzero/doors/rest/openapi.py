"""The description of the HTTP API (OpenAPI 3.1.0), made from the table of actions. No I/O."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from ringzero.api.action import Argument, Scope
from ringzero.api.values import Value
from ringzero.doors.rest.routes import ROOT, ROUTES, Route
from ringzero.version import __version__

Schema = dict[str, Any]
_PLAIN: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["kind", "message", "hint", "context"],
            "properties": {
                "kind": {"type": "string"},
                "message": {"type": "string"},
                "hint": {"type": ["string", "null"]},
                "context": {"type": "object", "additionalProperties": {"type": "string"}},
                "faults": {"type": "array", "items": {"type": "string"}},
            },
        }
    },
}
_JOB: Schema = {
    "type": "object",
    "required": ["id", "action", "status", "begun"],
    "properties": {
        "id": {"type": "string"},
        "action": {"type": "string"},
        "machine": {"type": ["string", "null"]},
        "status": {"enum": ["running", "done", "failed", "cancelled"]},
        "begun": {"type": "number"},
        "ended": {"type": ["number", "null"]},
        "result": {},
        "error": {"type": ["object", "null"]},
        "can_cancel": {"type": "boolean"},
    },
}
_STREAMS = (
    "A WebSocket (a GET with Upgrade; arguments in the query, or in a first message of text): a "
    "message of bytes is the number of a stream (0 input, 1 output, 2 error output) and its bytes, "
    'none for its end; a message of text is JSON: {"event": ...}, and from the server at last '
    '{"result": ...} or {"error": ...}.'
)


def document() -> dict[str, Any]:
    """Return the whole description."""
    schemas = _Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    paths |= _more(schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ringzero",
            "version": __version__,
            "description": "Virtual machines of this user on this host.",
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Error": _ERROR, "Job": _JOB, **dict(sorted(schemas.found.items()))},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


class _Schemas:
    """Schemas of records and typed dictionaries, by their names."""

    def __init__(self) -> None:
        self.found: dict[str, Schema] = {}

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type of `ringzero.api.values`."""
        if isinstance(kind, types.UnionType):
            return {"anyOf": [self.of(option) for option in get_args(kind)]}
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if kind in (None, types.NoneType):
            return {"type": "null"}
        origin, inner = get_origin(kind), get_args(kind)
        if origin is NotRequired:
            return self.of(inner[0])
        if origin in (list, tuple):
            return {"type": "array", "items": self.of(inner[0])}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(inner[1])}
        if is_typeddict(kind) or (isinstance(kind, type) and issubclass(kind, Value)):
            return self._named(kind)
        return {}

    def _named(self, kind: Any) -> Schema:
        reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
        if kind.__name__ in self.found:
            return reference
        schema: Schema = {"type": "object"}
        self.found[kind.__name__] = schema
        hints = get_type_hints(kind)
        optional: frozenset[str] = getattr(kind, "__optional_keys__", frozenset())
        if kind.__doc__:
            schema["description"] = kind.__doc__.strip().partition("\n")[0]
        schema["properties"] = {name: self.of(hint) for name, hint in hints.items()}
        schema["required"] = [name for name in hints if name not in optional]
        return reference


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    action = route.action
    inside = [part[1:-1] for part in route.parts if part.startswith("{")]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in inside
    ]
    rest = [a for a in action.arguments if a.name not in inside]
    own = ("machines", "{machine}") if action.scope is Scope.MACHINE else ()
    first = route.parts == (*own, action.name)
    description = action.summary[:1].upper() + action.summary[1:] + "."
    operation: dict[str, Any] = {
        "operationId": action.name if first else f"{action.name}_{route.method.lower()}",
        "summary": description,
        "tags": [action.scope.value],
        "responses": {
            "200": _answer("The answer.", schemas.of(action.result)),
            "default": _answer("What went wrong.", {"$ref": "#/components/schemas/Error"}),
        },
    }
    if action.wants_stream:
        operation["description"] = _STREAMS
    if route.method in ("POST", "PATCH"):
        if not action.wants_stream:
            operation["responses"]["202"] = _answer(
                "With `Prefer: respond-async`: it goes on as a job.",
                {"$ref": "#/components/schemas/Job"},
            )
        operation["requestBody"] = {
            "required": any(a.required for a in rest),
            "content": {"application/json": {"schema": _arguments(rest, schemas)}},
        }
    else:
        parameters += [
            {
                "name": a.name,
                "in": "query",
                "required": a.required,
                "description": a.help,
                "schema": _with_default(a, schemas),
            }
            for a in rest
        ]
    if parameters:
        operation["parameters"] = parameters
    if action.states and action.scope is Scope.MACHINE:
        operation["x-states"] = sorted(state.value for state in action.states)
    if action.events:
        operation["x-events"] = [event.value for event in action.events]
    return operation


def _arguments(arguments: list[Argument], schemas: _Schemas) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [a.name for a in arguments if a.required],
        "properties": {
            a.name: {**_with_default(a, schemas), "description": a.help} for a in arguments
        },
    }


def _with_default(argument: Argument, schemas: _Schemas) -> Schema:
    schema = schemas.of(argument.type)
    return schema if argument.required else {**schema, "default": argument.default}


def _answer(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _more(schemas: _Schemas) -> dict[str, dict[str, Any]]:
    """Return the paths that are no action's."""
    job = {"$ref": "#/components/schemas/Job"}
    number = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    fault = _answer("What went wrong.", {"$ref": "#/components/schemas/Error"})

    def operation(name: str, summary: str, schema: Schema, *parameters: Schema) -> dict[str, Any]:
        return {
            "operationId": name,
            "summary": summary,
            "tags": ["server"],
            "parameters": list(parameters),
            "responses": {"200": _answer("The answer.", schema), "default": fault},
        }

    wait = {"name": "wait", "in": "query", "required": False, "schema": {"type": "number"}}
    after = {"name": "after", "in": "query", "required": False, "schema": {"type": "integer"}}
    events = operation("events", "Tell what happens, as server-sent events.", {}, after)
    events["responses"]["200"] = {
        "description": "One event each, with its number as `id`; all known after `after`, or after "
        "`Last-Event-ID`, come first.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
    return {
        f"/{ROOT}/openapi.json": {"get": operation("openapi", "Tell this description.", {})},
        f"/{ROOT}/version": {"get": operation("version", "Tell the version.", {"type": "object"})},
        f"/{ROOT}/events": {"get": events},
        f"/{ROOT}/jobs": {"get": operation("jobs", "List jobs.", {"type": "array", "items": job})},
        f"/{ROOT}/jobs/{{id}}": {
            "get": operation("job", "Tell a job; wait up to `wait` seconds.", job, number, wait),
            "delete": operation("cancel_job", "End a job that can be ended.", job, number),
        },
    }
