"""run.toml: what it says, and all that can be wrong with it, told at once with lines."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ringzero.deployment import directory, file
from ringzero.deployment.description import (
    COMMAND,
    HTTP,
    NO_CHECK,
    TCP,
    Check,
    Restart,
    Secret,
    Update,
)
from ringzero.errors import ConfigError, HostError, MissingFileError
from ringzero.plain import from_plain, to_plain

pytestmark = pytest.mark.usefixtures("places")

WHOLE = """\
name = "shop"

[services.web]
image = "shop/web:1"
command = "serve --port 80"
memory = "256M"
cpus = 2
ports = ["127.0.0.1:8080:80", "8443:443"]
mounts = ["./static:/static:ro", "files:/files"]
networks = ["user"]
env = { LEVEL = "debug", WORKERS = 4, TRACE = true }
workdir = "/srv"
user = "nobody"
replicas = 2
restart = "on-failure:5"
drain = "1m30s"
stop_timeout = 5
after = ["db"]

[services.web.secrets]
PASSWORD = { file = "password" }
TOKEN = { env = "SHOP_TOKEN" }

[services.web.check]
http = ":443/healthz"
interval = "2s"
start_period = "10s"
retries = 5

[services.web.update]
parallel = 1

[services.db]
image = "oci:db"
disks = ["db.qcow2"]
check.command = ["db", "ping"]
update.order = "stop-first"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "static").mkdir()
    for name in ("password", "db.qcow2"):
        (tmp_path / name).touch()
    return tmp_path


def read(folder, text, name="run.toml"):
    path = folder / name
    path.write_text(text)
    return file.read(path)


def faults(folder, text, name="run.toml"):
    with pytest.raises(ConfigError) as caught:
        read(folder, text, name)
    return caught.value.faults


def test_a_whole_file(folder):
    found = read(folder, WHOLE)
    assert found.path == str(folder / "run.toml")
    shop = found.deployment
    web, db = shop.services
    assert (shop.name, web.name, db.name) == ("shop", "web", "db")
    assert web.command == ("serve", "--port", "80")
    assert (web.memory, web.cpus, web.replicas) == (256 << 20, 2, 2)
    assert [str(port) for port in web.ports] == [
        "127.0.0.1:8080->80/tcp",
        "127.0.0.1:8443->443/tcp",
    ]
    first, second = web.mounts
    assert first.startswith(f"{folder}/static:/static:ro")
    assert second.startswith(f"{directory.volume('shop', 'files')}:/files")
    assert web.env == {"LEVEL": "debug", "WORKERS": "4", "TRACE": "true"}
    assert web.secrets == {
        "PASSWORD": Secret(file=str(folder / "password")),
        "TOKEN": Secret(env="SHOP_TOKEN"),
    }
    assert web.check == Check(HTTP, 443, "/healthz", interval=2, start_period=10, retries=5)
    assert web.restart == Restart("on-failure", 5) and str(web.restart) == "on-failure:5"
    assert (web.drain, web.stop, web.after) == (90, 5, ("db",))
    assert web.update == Update(1, "start-first")
    assert db.image == f"oci:{folder}/db" and db.disks == (f"{folder}/db.qcow2",)
    assert db.check == Check(COMMAND, words=("db", "ping"))
    assert from_plain(type(shop), to_plain(shop)) == shop


def test_one_service_and_its_name(folder):
    place = folder / "My shop!"
    place.mkdir()
    found = read(place, 'image = "web:1"\nports = [80]\n').deployment
    assert found.name == "My-shop"
    (web,) = found.services
    assert (web.name, web.ports[0].guest_port, web.ports[0].port) == ("My-shop", 80, 0)
    assert web.check is None and web.checked == Check(TCP, 80)
    assert file.read({"name": "x", "image": "y"}).deployment.services[0].checked == Check()
    assert file.read({"name": "x", "image": "y", "check": {"none": True}}).deployment.services[
        0
    ].check == Check(NO_CHECK)


def test_yaml_is_the_same(folder):
    text = """\
name: shop
services:
  web:
    image: shop/web:1
    ports: ["8080:80"]
    env: {LEVEL: debug}
    check: {http: /healthz}
"""
    toml = """\
name = "shop"
[services.web]
image = "shop/web:1"
ports = ["8080:80"]
env.LEVEL = "debug"
check.http = "/healthz"
"""
    assert read(folder, text, "run.yaml").deployment == read(folder, toml).deployment
    found = faults(folder, text.replace("ports", "prots") + "    image: again\n", "run.yml")
    assert found == ["run.yml:8: image stands twice"]
    found = faults(folder, text.replace("ports", "prots").replace("{http", "{htp"), "run.yml")
    assert found[0].startswith("run.yml:7: services.web.check.htp: there is no such key")
    assert found[-1] == (
        "run.yml:5: services.web.prots: there is no such key; did you mean 'ports'?"
    )


def test_all_faults_at_once_with_lines(folder):
    found = faults(
        folder,
        """\
nmae = "shop"
name = "shop"

[services.web]
imgae = "web"
memory = 512
cpus = 0
ports = ["8080:80", "nonsense", "53:53/udp"]
mounts = ["./missing:/data"]
networks = ["nowhere"]
restart = "sometimes"
replicas = -1
drain = "soon"
env = { "a b" = "c" }
after = ["bd"]
[services.web.check]
http = "/"
tcp = 80
[services.web.secrets]
BOTH = { file = "password", env = "X" }
GONE = { file = "gone" }
[services.other]
image = "Not A Name"
ports = ["8080:80"]
update.order = "start-frist"
""",
    )
    for told in (
        "run.toml:1: nmae: there is no such key; did you mean 'name'?",
        "run.toml:5: services.web.imgae: there is no such key; did you mean 'image'?",
        "run.toml:4: services.web.image: a service needs an image",
        "run.toml:6: services.web.memory: 512 are bytes; was '512M' meant?",
        "run.toml:7: services.web.cpus: a whole number from 1 to 255 is wanted",
        "run.toml:8: services.web.ports[1]: no ports in 'nonsense'",
        "run.toml:8: services.web.ports: only TCP ports can be moved from version to version",
        "run.toml:10: services.web.networks[0]: no network called 'nowhere'",
        "run.toml:11: services.web.restart: no, on-failure, on-failure:N or always is wanted",
        "run.toml:12: services.web.replicas: a whole number from 0 to 100 is wanted",
        "run.toml:13: services.web.drain: 'soon' is no time; 30s, 1m30s, 500ms",
        "run.toml:15: services.web.after: no service is called 'bd'",
        "run.toml:16: services.web.check: one of http, tcp, command and none is wanted",
        "run.toml:20: services.web.secrets.BOTH: a secret is read from a file or from env, one of "
        "them",
        f"run.toml:21: services.web.secrets.GONE.file: {folder}/gone does not exist, or is no file",
        "run.toml:25: services.other.update.order: 'start-frist': known are start-first, "
        "stop-first; did you mean 'start-first'?",
    ):
        assert told in found, told
    for part in ("a b: no variable is called so", "missing", "'Not A Name' names no image"):
        assert any(part in text for text in found), part
    assert any("port 8080/tcp of 127.0.0.1 is forwarded twice" in text for text in found)


def test_bad_toml_has_a_caret(folder):
    (told,) = faults(folder, 'name = "shop"\nimage = web\n')
    first, line, caret = told.splitlines()
    assert first.startswith("run.toml:2:")
    assert line.strip() == "image = web"
    assert caret.strip() == "^"


@pytest.mark.parametrize(
    "text",
    [
        "[services]\n",
        "services = 3\n",
        "[services]\nweb = 3\n",
        '[services.web]\nimage = ""\n',
        '[services."a/b"]\nimage = "x"\n',
        f'[services.{"x" * 60}]\nimage = "x"\n',
        '[services.a]\nimage = "x"\nafter = ["b"]\n[services.b]\nimage = "x"\nafter = ["a"]\n',
        'image = "x"\ncheck = "often"\n',
        'image = "x"\ncheck.http = "https://x"\n',
        'image = "x"\nports = ["1:80"]\ncheck.tcp = 81\n',
        'image = "x"\nports = true\n',
        'image = "x"\ncommand = []\n',
        'image = "x"\ncommand = "\'"\n',
        'image = "x"\ndisks = ["db.qcow2"]\n',
        'image = "x"\ndisks = ["db.qcow2"]\nreplicas = 2\nupdate.order = "stop-first"\n',
        'image = "x"\nmemory = true\n',
        'image = "x"\ndrain = nan\n',
        'image = "x"\ndrain = "48h"\n',
        'image = "x"\nenv.A = "b"\nsecrets.A = { env = "B" }\n',
        'image = "x"\nname = "a b"\n',
        'image = "x"\nrestart = "always:3"\n',
        'image = "x\\u0000"\n',
    ],
)
def test_what_is_refused(folder, text):
    for fault in faults(folder, text):
        assert fault.startswith("run.toml")


def test_files_that_are_none(folder):
    with pytest.raises(MissingFileError, match="there is no file"):
        file.read(folder / "nothing.toml")
    with pytest.raises(HostError):
        file.read(folder)
    (folder / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        file.read(folder / "run.toml")
    (folder / "run.toml").write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        file.read(folder / "run.toml")
    (folder / "run.toml").write_text("a = " + "[" * 400)
    with pytest.raises(ConfigError):
        file.read(folder / "run.toml")
    (folder / "run.yaml").write_text("a: " + "[" * 400)
    with pytest.raises(ConfigError):
        file.read(folder / "run.yaml")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    (folder / "run.yaml").write_text(bomb)
    with pytest.raises(ConfigError, match="too large"):
        file.read(folder / "run.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_bytes_that_nobody_wrote(folder_factory, data):
    """Whatever is cut out of a file, doubled or put in: it is read, or told to be wrong."""
    text = WHOLE.encode()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(at, min(len(text), at + 40)))
        put = data.draw(st.one_of(st.just(b""), st.just(text[at:end] * 2), st.binary(max_size=8)))
        text = text[:at] + put + text[end:]
    for name in ("run.toml", "run.yaml"):
        (folder_factory / name).write_bytes(text)
        with contextlib.suppress(ConfigError):
            file.read(folder_factory / name)


@pytest.fixture(scope="module")
def folder_factory(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


def test_what_other_programs_would_stumble_over(folder):
    found = faults(
        folder,
        """\
image: 2020-01-01
1: 2
env: {1: x, null: y}
secrets: {A: {file: ~nobody-of-that-name/x}}
mounts: [~nobody-of-that-name/y:/y]
""",
        "run.yaml",
    )
    assert "run.yaml:1: image: a text is wanted" in found
    assert "run.yaml:2: 1: there is no such key" in found
    assert sum("no variable is called so" in text for text in found) == 1
    assert sum("home directory" in text for text in found) == 2
    with pytest.raises(ConfigError, match="x" * 300):
        file.read({"image": "x", "secrets": {"A": {"file": "x" * 300}}, "name": "y"})
    with pytest.raises(ConfigError, match="no such key"):
        file.read({"image": "x", "name": "y", 3: 4})
    assert file.read({"image": "x", "name": "y", "command": ("a", "b")})


def test_lines_of_keys():
    from ringzero.deployment.lines import parse_toml

    _, lines = parse_toml(
        'a = """\nb = 1\n"""\n[x . "y z"]\nc.d = 1\ne = [\n  "f = 2",\n]\n[[t]]\n', "x"
    )
    assert lines == {
        ("a",): 1,
        ("x", "y z"): 4,
        ("x", "y z", "c"): 5,
        ("x", "y z", "c", "d"): 5,
        ("x", "y z", "e"): 6,
        ("t",): 9,
    }


def test_which_changes_make_other_machines(folder):
    base = {"name": "x", "image": "web:1", "ports": ["1:80"], "check": {"tcp": 80}}

    def spec(**more):
        return file.read({**base, **more}).deployment.services[0].spec()

    for same in (
        {"replicas": 3},
        {"restart": "no"},
        {"drain": "1s"},
        {"ports": ["2:80"]},
        {"update": {"parallel": 1}},
        {"check": {"http": "/"}},
        {"check": {"none": True}},
    ):
        assert spec(**same) == spec(), same
    for other in (
        {"memory": "1G"},
        {"command": "x"},
        {"env": {"A": "b"}},
        {"ports": ["1:81"], "check": {"tcp": 81}},
        {"check": {"command": "true"}},
        {"secrets": {"A": {"env": "B"}}},
        {"mounts": [f"{Path(folder)}:/data"]},
    ):
        assert spec(**other) != spec(), other
