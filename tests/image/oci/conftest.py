import os

import pytest

from tests.image.oci.images import FakeRegistry

MINE = ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")


@pytest.fixture
def registry():
    made = FakeRegistry()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No credentials, proxies or settings of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in list(os.environ):
        if name in MINE or name.lower().endswith("_proxy") or name.startswith("RINGZERO_"):
            monkeypatch.delenv(name)
