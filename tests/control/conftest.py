import contextlib

import pytest

from ringzero.control.host import client, directory
from ringzero.errors import RingzeroError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty directory of machines and one of data; what runs in it at the end is killed."""
    where = tmp_path / "machines"
    monkeypatch.setenv("RINGZERO_MACHINES_DIR", str(where))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    yield where
    for machine in client.machines():
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)
    assert directory.machines() == []
