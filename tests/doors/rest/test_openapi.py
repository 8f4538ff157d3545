"""The description says what the server does; every name in it leads somewhere."""

import json

import pytest

from ringzero.api.table import ACTIONS
from ringzero.doors.rest.openapi import document


def walk(value):
    yield value
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from walk(inner)


@pytest.fixture(scope="module")
def described():
    return json.loads(json.dumps(document()))


def test_references_lead_somewhere(described):
    found = {v["$ref"] for v in walk(described) if isinstance(v, dict) and "$ref" in v}
    assert "#/components/schemas/MachineSummary" in found
    for reference in found:
        at = described
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_every_action_is_described_once_and_wholly(described):
    operations = [o for path in described["paths"].values() for o in path.values()]
    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    assert set(ACTIONS) <= set(identifiers)
    for operation in operations:
        named = [p["name"] for p in operation.get("parameters", ())]
        assert len(set(named)) == len(named)
    for name, action in ACTIONS.items():
        (operation,) = (o for o in operations if o["operationId"] == name)
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        # Events are told as HTTP has it, from a number on.
        told = {p["name"] for p in operation.get("parameters", ())} - {"machine", "after"}
        told |= set(body.get("schema", {}).get("properties", ()))
        assert told == {argument.name for argument in action.arguments}


def test_it_is_openapi(described):
    schema = pytest.importorskip(
        "openapi_spec_validator", reason="pip install openapi-spec-validator"
    )
    schema.validate(described)
