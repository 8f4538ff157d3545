"""Requests that make no sense: always an answer, never a traceback, and the API goes on."""

import json
import random

from ringzero.doors.firecracker import table
from tests.chance import FUZZ, seed

ROUNDS = 1500 * FUZZ
VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1.5, "", "x", "\0", "\n", "é"),
    *("/dev/null", "/nonexistent", "None", "V2", "Full", "InstanceStart", "Paused", "off"),
    *([], {}, [None], [[]], {"size": 1, "refill_time": 1}, "169.254.1.1", "02:00:00:00:00:01"),
)
NAMES = sorted(
    {
        name
        for operation in table.OPERATIONS
        if operation.body is not None
        for name in (*operation.body.required, *operation.body.optional)
    }
)


def value(chance, depth=0):
    kind = chance.randrange(8)
    if kind == 0 and depth < 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(3))]
    if kind == 1 and depth < 4:
        return {chance.choice(NAMES): value(chance, depth + 1) for _ in range(3)}
    return chance.choice(VALUES)


def body(chance, operation):
    names = NAMES
    if operation.body is not None and chance.random() < 0.9:
        names = [*operation.body.required, *operation.body.optional]
    fields = {name: value(chance) for name in names if chance.random() < 0.7}
    data = json.dumps(fields).encode()
    if chance.random() < 0.2:
        data = bytearray(data)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.choice((len(data), chance.randrange(len(data) + 1)))])


def test_fuzz_requests(api, monkeypatch):
    """Before the start and after; what would start a guest, or write a file, is left out."""
    chance = random.Random(seed())
    monkeypatch.setattr(api.instance, "start", lambda: None)
    for name in ("_create_snapshot", "_set_logger", "_set_metrics"):
        monkeypatch.setattr(api.instance, name, lambda fields: None)
    for round_ in range(ROUNDS):
        api.instance._state = chance.choice(("Not started", "Running"))
        operation = chance.choice(table.OPERATIONS)
        method = operation.method
        if chance.random() < 0.05:
            method = chance.choice(("GET", "PUT", "PATCH", "DELETE", "POST", "\xff"))
        path = operation.path.replace(table.ID, chance.choice(("x", "", "a-b", "..", "%00", "é")))
        if chance.random() < 0.05:
            path += chance.choice(("/", "/x", "?a=b", "//", "/" * 50))
        data = body(chance, operation) if chance.random() < 0.9 else b""
        answer = api.raw(method, path, data)
        assert answer.status in (200, 204, 400, 413), (round_, method, path, data)
        if answer.status >= 400:
            assert json.loads(answer.content)["fault_message"]
    api.instance._state = "Not started"
    assert api.ask("GET", "/")[0] == 200
