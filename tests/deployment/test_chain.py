"""A service from its Vmfile to its answers: two hosts, and a registry between them.

One store builds and pushes, the other one pulls and deploys; version 2 takes over under load, a bad
one is taken back, and `deploy rollback` leads to version 1.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ringzero.cli.main import main
from tests.build.conftest import cache_in, served  # noqa: F401 - a fixture
from tests.deployment.conftest import get, port_of
from tests.deployment.test_deploy import Load
from tests.image.oci.docker_registry import docker_registry
from tests.image.oci.signing.test_images import LoopRegistry

pytestmark = pytest.mark.boot

RUN_TOML = """\
name = "shop"
image = "{image}"
memory = "{memory}"
ports = ["0:8000"]
drain = "20s"
secrets.KEY.file = "key"
env.WORD = "file's"
check = {{ http = "/word", interval = "200ms", start_interval = "50ms", timeout = "100s" }}
"""
SECRET = "hunter2"


@dataclass
class Service:
    """What is built: a Vmfile, and a source that it copies last, in three versions.

    The first two answer /word with "one" and "two", the third ends with status 7.
    """

    vmfile: str
    source: str
    versions: tuple[str, str, str]
    memory: str = "128M"


class Host:
    """A host with a store of images of its own; calling it runs a command there."""

    def __init__(self, place, monkeypatch, capfd):
        place.mkdir()
        self.place, self.cache = place, cache_in(place)
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self.errors = ""
        # How long each command took, for people.
        self.times = []

    def __call__(self, *words, code=0):
        self._monkeypatch.setenv("RINGZERO_CACHE_DIR", str(self.cache))
        self._monkeypatch.chdir(self.place)
        self._capfd.readouterr()
        began = time.monotonic()
        found = main(list(map(str, words)))
        told = self._capfd.readouterr()
        self.errors = told.err
        assert found == code, told.out + told.err
        self.times.append(
            f"{time.monotonic() - began:7.2f} s  ringzero {' '.join(map(str, words))}"
        )
        return told.out

    def build(self, name, directory="."):
        """Build an image; return the instructions that were carried out, and not known."""
        out = self("image", "build", "--progress", "json", "-t", name, directory)
        steps, done = {}, []
        for line in filter(lambda line: line.startswith('{"step"'), out.splitlines()):
            told = json.loads(line)
            if "instruction" in told:
                steps[told["step"]] = told["instruction"]
            elif told.get("cached") is False:
                done.append(steps[told["step"]])
        return done

    def deploy(self, image, memory, code=0):
        """Deploy an image as the service of this host."""
        (self.place / "key").write_text(SECRET)
        text = RUN_TOML.format(image=image, memory=memory)
        (self.place / "run.toml").write_text(text)
        return self("deploy", "-f", "run.toml", code=code)


@pytest.fixture
def hosts(places, monkeypatch, capfd):
    """Two hosts."""
    return [Host(places / name, monkeypatch, capfd) for name in ("here", "there")]


def chain(hosts, service: Service, host: str, held: Callable[[], int], shut: Callable[[], object]):
    """Lead a service all the way. `held` counts a registry's blobs, `shut` ends it."""
    here, there = hosts
    (here.place / "Vmfile").write_text(service.vmfile)
    names, last = [], f"COPY {service.source} "
    for number, text in enumerate(service.versions, 1):
        (here.place / service.source).write_text(text)
        names.append(f"{host}/app:{number}")
        done = here.build(names[-1])
        if number == 1:
            assert any(step.startswith("RUN") for step in done)
        else:
            assert [step for step in done if not step.startswith("FROM")] == [
                step for step in service.vmfile.splitlines() if step.startswith(last)
            ]
        before = held()
        here("push", "-q", names[-1])
        # Layer, configuration and manifest of what changed, and no more.
        assert number == 1 or 0 < held() - before <= 3
        assert SECRET not in here.errors

    there("pull", "-q", names[0])
    there.deploy(names[0], service.memory)
    port = port_of("shop")
    assert get(port, "/word") == (200, "one\n")
    with Load(port, 2, "/word") as load:
        there.deploy(names[1], service.memory)
        assert get(port, "/word") == (200, "two\n")
        there.deploy(names[2], service.memory, code=1)
        assert "status 7" in there.errors, there.errors
        assert get(port, "/word") == (200, "two\n")
        # What is deployed needs no registry any more.
        shut()
        there("deploy", "rollback")
        assert get(port, "/word") == (200, "one\n")
    assert load.failed == []
    assert set(load.answers) == {(200, "one\n"), (200, "two\n")}
    found = json.loads(there("deploy", "history", "--json"))
    assert [(each["version"], each["outcome"]) for each in found] == [
        *((4, "live"), (3, "failed"), (2, "replaced"), (1, "replaced")),
    ]
    for path in there.place.parent.rglob("machines/*/*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_with_busybox(hosts, served):  # noqa: F811
    address, _ = served(b"one\ntwo\n")
    port = address.rpartition(":")[2]
    vmfile = f"""\
FROM micro
RUN mkdir /www && wget -q -O /www/words http://host.ringzero.internal:{port}/n
COPY start /start
ENV WORD=image
CMD ["sh", "/start"]
"""
    start = f"""\
test "$KEY $WORD" = "{SECRET} file's" || exit 9
sed -n 1p /www/words >/www/word
exec httpd -f -p 8000 -h /www
"""
    versions = (start, start.replace("1p", "2p"), start.replace("exec httpd", "exit 7; exec httpd"))
    registry = LoopRegistry()

    def shut():
        registry.server.shutdown()
        registry.server.server_close()

    service = Service(vmfile, "start", versions)
    chain(hosts, service, registry.host, lambda: len(registry.blobs), shut)


# ---- with Python, pip and Debian's registry ---------------------------------


# What no service needs of the standard library, and half of its size.
UNUSED = ("test", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "site-packages")
APP = """\
import http.server, os

import tellme

assert os.environ["KEY"] == "hunter2"
WORD = "one"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = tellme.line(WORD).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


http.server.ThreadingHTTPServer(("", 8000), Handler).serve_forever()
"""
PYTHON = """\
FROM {host}/python:1
WORKDIR /srv/app
COPY requirements.txt .
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore \\
    --index-url http://host.ringzero.internal:{port}/simple \\
    --trusted-host host.ringzero.internal -r requirements.txt
COPY app.py .
CMD ["python3", "app.py"]
"""


def wheel(place):
    """Write the package "tellme" as a wheel (PEP 427) into an index (PEP 503)."""
    files = {
        "tellme.py": "def line(word):\n    return word + '\\n'\n",
        "tellme-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tellme\nVersion: 1.0\n",
        "tellme-1.0.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "tellme-1.0.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in (*files, record))
    folder = place / "simple" / "tellme"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "tellme-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def loaded(path):
    """Return the files that a program or library has the dynamic linker load."""
    told = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return set(re.findall(r"(?:=> )?(/\S+) \(0x", told))


def interpreter(target, work):
    """Write a tar of this Python with pip, and of what it loads, each at its own place."""
    program = Path(os.path.realpath(sys.executable))
    library = Path(sysconfig.get_path("stdlib"))
    tree = work / "library"
    shutil.copytree(library, tree, ignore=shutil.ignore_patterns(*UNUSED, "__pycache__"))
    import pip

    place = Path(pip.__file__).parent
    shutil.copytree(
        place, tree / "site-packages" / "pip", ignore=shutil.ignore_patterns("__pycache__")
    )
    # Times are no part of an image that is copied.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash",
         "-s", tree, "-p", library, tree],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
    )  # fmt: skip
    libraries = loaded(program)
    for path in library.glob("lib-dynload/*.so"):
        libraries |= loaded(path)
    with tarfile.open(target, "w", dereference=True) as archive:
        archive.add(program, str(program))
        archive.add(tree, str(library))
        for name in sorted(libraries):
            archive.add(name)
        link = tarfile.TarInfo("usr/local/bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(program)
        archive.addfile(link, io.BytesIO())


@pytest.mark.peer
@pytest.mark.timeout(1500)
@pytest.mark.skipif(
    not os.environ.get("RINGZERO_TEST_CHAIN"),
    reason="RINGZERO_TEST_CHAIN=1 has a service in Python go all the way: a minute",
)
def test_with_python_and_pip(hosts, served, tmp_path, capfd):  # noqa: F811
    address, _ = served(b"")
    wheel(tmp_path / "served")
    here = hosts[0]
    base = here.place / "base"
    base.mkdir()
    interpreter(base / "python.tar", tmp_path)
    (base / "Vmfile").write_text('FROM micro\nADD python.tar /\nCMD ["python3"]\n')
    (here.place / "requirements.txt").write_text("tellme==1.0\n")
    versions = (
        APP,
        APP.replace('"one"', '"two"'),
        APP.replace("class", "raise SystemExit(7)\n\n\nclass"),
    )
    with docker_registry(tmp_path / "registry") as host:
        here.build(f"{host}/python:1", "base")
        here("push", "-q", f"{host}/python:1")
        vmfile = PYTHON.format(host=host, port=address.rpartition(":")[2])
        service = Service(vmfile, "app.py", versions, "256M")
        blobs = tmp_path / "registry" / "blobs"
        chain(hosts, service, host, lambda: len([*blobs.rglob("data")]), lambda: None)
    with capfd.disabled():
        print("", *(line for host in hosts for line in host.times), sep="\n")
