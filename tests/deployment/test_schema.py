"""The JSON schema of run.toml: it takes what the file's reader takes, and refuses what it can."""

import contextlib
import json
import tomllib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from ringzero.cli.main import main
from ringzero.deployment import file
from ringzero.deployment.lines import parse_yaml
from ringzero.deployment.schema import schema
from ringzero.errors import ConfigError
from tests.deployment.test_file import WHOLE

pytestmark = pytest.mark.usefixtures("places")
VALIDATOR = Draft202012Validator(schema())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    (place / "static").mkdir()
    for name in ("password", "db.qcow2"):
        (place / name).touch()
    return place


def accepted(folder, text, name="run.toml"):
    """Whether the reader takes a file."""
    (folder / name).write_bytes(text)
    with contextlib.suppress(ConfigError):
        file.read(folder / name)
        return True
    return False


def test_it_is_a_schema_and_takes_a_whole_file():
    Draft202012Validator.check_schema(schema())
    VALIDATOR.validate(tomllib.loads(WHOLE))
    # Nothing of it is left out.
    known = schema()["$defs"]["service"]["properties"]
    assert set(tomllib.loads(WHOLE)["services"]["web"]) < set(known)


ONES = {
    "memory": ['"1.5GiB"', "134217728", '" 512 m "', '"409600KB"', "512", '"much"', "true", "1.5"],
    "cpus": ["1", "64", "0", "256", '"2"'],
    "ports": ["80", '"80:80"', '["1:2", 3]', "true", "[1.5]"],
    "command": ['"sh"', '["sh", ""]', '""', "[]", "[1]"],
    "drain": ["0", "1.5", '"0"', '"1m30s"', '".5h"', '"48"', "-1", "100000"],
    "restart": ['"no"', '"always"', '"on-failure:3"', '"always:3"', '"on-failure:x"'],
    "replicas": ["0", "100", "101"],
    "after": ["[]", '"x"'],
    "env": ["{ A = 1, b = 1.5, C = false }", '{ "a b" = "c" }', "{ A = [] }", "1"],
    "secrets": ['{ A = { env = "B" } }', '{ A = { env = "B", file = "password" } }', "{ A = {} }"],
    "check": ['{ http = "/x" }', '{ http = "https://x" }', "{ none = true }", "{ none = false }",
              '{ command = "a" }', "{ retries = 3 }", '{ none = true, command = "a" }',
              '{ none = true, timeout = 0 }', '{ none = true, retries = 1001 }'],
    "update": ['{ order = "stop-first", parallel = 1 }', '{ order = "last" }', "{ parallel = 0 }"],
    "networks": ['"user"', '["none"]', "[1]"],
    "entrypoint": ['"sh"', '""', "[]"],
    "nmae": ["1"],
}  # fmt: skip
# What only the reader can know, by what stands on this host or in another key.
BEYOND = {("check", '{ http = "/x" }'), ("after", '"x"'), ("drain", '"48"')}


@pytest.mark.parametrize("key", ONES)
@pytest.mark.parametrize("form", ["services.x", ""])
def test_each_key_is_judged_as_its_reader_does(folder, key, form):
    for value in ONES[key]:
        text = f'name = "n"\n{f"[{form}]" if form else ""}\nimage = "x"\n{key} = {value}\n'
        told = accepted(folder, text.encode())
        if (key, value) not in BEYOND:
            assert VALIDATOR.is_valid(tomllib.loads(text)) == told, (key, value, told)


@pytest.mark.parametrize(
    "text",
    ["", "services = 3", "[services]", '[services.x]\nreplicas = 1', 'image = "x"\n[services]',
     'services.x.image = "x"\nreplicas = 2'],
)  # fmt: skip
def test_what_is_refused(folder, text):
    assert not accepted(folder, text.encode())
    assert not VALIDATOR.is_valid(tomllib.loads(text))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_nothing_that_is_read_is_refused(folder, data):
    text = WHOLE.encode()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 40)))
        put = data.draw(st.one_of(st.just(b""), st.just(text[at:end] * 2), st.binary(max_size=4)))
        text = text[:at] + put + text[end:]
    if accepted(folder, text):
        VALIDATOR.validate(tomllib.loads(text.decode()))


def test_yaml_is_judged_by_it_too():
    values, _ = parse_yaml("image: x\nenv: {A: true}\nports: ['80:80']\ncheck: {tcp: 80}\n", "y")
    VALIDATOR.validate(values)


def test_the_command(capsys):
    for words in (["deploy", "--schema"], ["deploy", "--schema", "--json"]):
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out) == schema()
