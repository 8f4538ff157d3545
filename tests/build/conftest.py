"""A cache of a test's own, with the guest's image of the user's."""

import os
from pathlib import Path

import pytest

from ringzero.image import micro
from ringzero.settings import CACHE_DIR


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = CACHE_DIR.get()
    micro.ensure()
    own = tmp_path / "cache"
    (own / "images").mkdir(parents=True)
    for path in [*place.iterdir(), *(place / "images").iterdir()]:
        target = own / path.relative_to(place)
        if not target.exists() and path.name not in ("build", "blobs", "names", "lock"):
            target.symlink_to(path)
    # Changes to the environment are for this process's children, too.
    monkeypatch.setenv("RINGZERO_CACHE_DIR", os.fspath(own))
    return own
