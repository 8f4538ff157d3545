import pytest

from tests.image.oci.images import FakeRegistry


@pytest.fixture
def registry():
    made = FakeRegistry()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nobody(tmp_path, monkeypatch):
    """No credentials, proxies or settings of whoever runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "http_proxy",
                 "RINGZERO_REGISTRY_MIRRORS", "RINGZERO_HTTP_REGISTRIES"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
