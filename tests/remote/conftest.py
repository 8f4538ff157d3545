import os
import threading

import pytest

from ringzero.doors.tokens import Tokens
from ringzero.errors import RingzeroError
from ringzero.remote import Client
from tests.control.conftest import root  # noqa: F401 - a fixture
from tests.doors.conftest import certificate, fakes  # noqa: F401 - fixtures
from tests.doors.serving import Served
from tests.remote.sshd import Sshd

SETTINGS = ("RINGZERO_MACHINES_DIR", "RINGZERO_DATA_DIR")


class Way:
    """How a client reaches the machines of this test: what `Client` and --host are given."""

    def __init__(self, url, token=None, authorities=None):
        self.url = url
        self.token = token
        self.authorities = authorities

    def client(self):
        return Client(self.url, token=self.token, authorities=self.authorities)


def begun(tmp_path, monkeypatch, **how):
    kept = {name: os.environ[name] for name in SETTINGS}
    kept["RINGZERO_SERVE_DIR"] = str(tmp_path / "serve")
    kept["RINGZERO_SERVE_SOCKET"] = str(tmp_path / "rest.sock")
    found = Sshd(tmp_path / "sshd", kept, **how)
    monkeypatch.setenv("PATH", f"{found.path}{os.pathsep}{os.environ['PATH']}")
    return found


@pytest.fixture
def sshd(fakes, root, tmp_path, monkeypatch):  # noqa: F811 - the fixtures
    found = begun(tmp_path, monkeypatch)
    yield found
    found.close()


@pytest.fixture
def real_sshd(root, tmp_path, monkeypatch):  # noqa: F811 - the fixture
    """One whose machines have guests."""
    found = begun(tmp_path, monkeypatch, fakes=False)
    yield found
    found.close()


@pytest.fixture(params=["unix", "https", "ssh"])
def way(request, fakes, root, tmp_path):  # noqa: F811 - the fixtures
    """Each way to the machines of a host."""
    where = tmp_path / "serve"
    if request.param == "ssh":
        yield Way(request.getfixturevalue("sshd").url)
        return
    if request.param == "unix":
        with Served(where, rest=[str(tmp_path / "rest.sock")]) as served:
            yield Way(f"unix://{served.path}")
        return
    shown = request.getfixturevalue("certificate")
    token = Tokens(where).create("laptop", reads=False)
    with Served(where, shown, rest=["127.0.0.1:0"]) as served:
        yield Way(f"https://{served.path}", token, shown.certificate)


def attached(machine, taker):
    """Attach to a machine's console on a thread; return it, and what it hears in the end."""
    faults = []

    def attach():
        try:
            machine.console(taker)
        except RingzeroError as fault:
            faults.append(fault)

    thread = threading.Thread(target=attach)
    thread.start()
    assert taker.begun.wait(20)
    return thread, faults
