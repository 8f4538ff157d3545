import shutil

import pytest

from ringzero.image import packages, sources
from tests.image.archive import Archive


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(path))
    return path


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An offline archive, trusted by apt without a signature."""
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    made = Archive(tmp_path / "archive")
    source = sources.Source((made.uri,), (made.suite,), (("Trusted", "yes"),))
    monkeypatch.setattr(packages, "debian_sources", lambda suite=None: [source])
    return made
