import contextlib

import pytest

from ringzero.control.host import client, directory
from ringzero.errors import RingzeroError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Empty directories of machines, networks and data; what runs at the end is killed."""
    where = tmp_path / "machines"
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(where))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    # The agents of machines without guests run programs of this host's.
    monkeypatch.setenv("RINGZERO_JAIL", "none")
    yield where
    for machine in client.machines():
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)
    assert directory.machines() == []
