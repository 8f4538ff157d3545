import os
import shutil
import subprocess

import pytest

from ringzero.control.host import launch as launching
from ringzero.doors.listeners import Certificate
from tests.control.conftest import root  # noqa: F401 - a fixture
from tests.control.fake import PROGRAM
from tests.doors.serving import Served


@pytest.fixture
def fakes(root, monkeypatch):  # noqa: F811 - the fixture
    """Machines without guests."""
    monkeypatch.setattr(launching, "PROGRAM", PROGRAM)
    # Their agents run programs of this host's.
    monkeypatch.setenv("RINGZERO_JAIL", "none")


@pytest.fixture
def served(fakes, root, tmp_path):  # noqa: F811 - the fixture
    """A daemon with the HTTP API, on the loop of a thread of its own."""
    with Served(tmp_path / "serve", rest=[str(tmp_path / "rest.sock")]) as served:
        yield served
    assert not os.path.lexists(tmp_path / "rest.sock")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    where = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", where / "key", "-out", where / "cert"),
        ],
        check=True,
        capture_output=True,
    )
    return Certificate(where / "cert", where / "key")
