import contextlib
import http.client
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ringzero
from ringzero.control.host import client as machines
from ringzero.deployment import client, directory
from ringzero.errors import RingzeroError
from tests.deployment import fake

ROOT = Path(__file__).parents[2]
SOURCE = str(Path(ringzero.__file__).parents[1])


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)
    return found


def get(port, path="/", timeout=100):
    """Return status and body of an answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    finally:
        link.close()


def end_all():
    """Remove all deployments and machines of a test, whatever state they are in."""
    for place in directory.deployments():
        with contextlib.suppress(RingzeroError):
            client.remove(place.name)
    for machine in machines.machines():
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Directories of the test's own; what is deployed there at its end is removed."""
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path / "machines"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    yield tmp_path
    end_all()
    assert [place.name for place in directory.deployments() if place.alive] == []


@pytest.fixture(scope="session")
def forker(tmp_path_factory):
    """The socket of a process that forks fake machines and deployments of such."""
    place = tmp_path_factory.mktemp("fork") / "s"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((SOURCE, str(ROOT)))}
    command = [sys.executable, "-m", "tests.deployment.fake", str(place)]
    process = subprocess.Popen(command, env=environment)
    until(place.exists, 60)
    yield place
    process.terminate()
    process.wait()


@pytest.fixture
def host(places, forker, monkeypatch):
    """A host whose machines are fake ones: their processes serve HTTP."""
    monkeypatch.setattr(directory, "_PROGRAM", fake.program(forker, "deployment"))
    return places


def web(text="v1", **more):
    """Return a description of one service that answers with `text`."""
    check = {"http": "/healthz", "start_interval": "20ms", "interval": "50ms", "retries": 2}
    # However busy the host is.
    check["timeout"] = "60s"
    return {
        "name": "web",
        "image": "fake",
        "command": ["serve", text],
        "ports": ["0:80"],
        "check": check,
        "drain": "5s",
    } | more


def port_of(name="web", number=0):
    found = client.status(name)["services"][0]["ports"][number]["port"]
    assert found
    return found
