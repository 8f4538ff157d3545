"""A cache of a test's own, with the guest's image of the user's."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ringzero.image import micro
from ringzero.settings import CACHE_DIR

# What is no user's guest or engine.
OWN = ("build", "blobs", "layers", "names", "lock", "templates")


def cache_in(directory: Path) -> Path:
    """Return a new cache that has the guest's image and the engine of the user's, and no more."""
    place = CACHE_DIR.get()
    micro.ensure()
    own = directory / "cache"
    (own / "images").mkdir(parents=True)
    for path in [*place.iterdir(), *(place / "images").iterdir()]:
        target = own / path.relative_to(place)
        if not target.exists() and path.name not in OWN:
            target.symlink_to(path)
    return own


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    own = cache_in(tmp_path)
    # Changes to the environment are for this process's children, too.
    monkeypatch.setenv("RINGZERO_CACHE_DIR", os.fspath(own))
    return own


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[bytes], tuple[str, str]]]:
    """Serve bytes as every file of a server on the loopback; return its address, and their sum."""
    place = tmp_path / "served"
    place.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=os.fspath(place)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def serve(data: bytes) -> tuple[str, str]:
        (place / "n").write_bytes(data)
        checksum = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return f"http://127.0.0.1:{server.server_port}", checksum

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()
