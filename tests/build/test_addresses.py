"""ADD of addresses: a real server of HTTP on the loopback, and what it may do wrong."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringzero.build import addresses
from ringzero.errors import GuestImageError, HostError, InvalidValueError, NotFoundError

FILES = {"/f.tar": b"content", "/other": b"another", "/deep/a%20b": b"x"}


class Handler(BaseHTTPRequestHandler):
    """Serves FILES; /short breaks off, /moved leads to /f.tar, /broken is a fault."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/f.tar")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = FILES.get(path, b"12345")
        known = path in FILES or path == "/short"
        self.send_response(200 if known else 500 if path == "/broken" else 404)
        self.send_header("Content-Length", str(len(data) + 5 * (path == "/short")))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Not on the terminal."""


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.asked = []
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def at(server, path):
    return f"http://127.0.0.1:{server.server_port}{path}"


def sum_of(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read(entry):
    return b"".join(entry.content())


def test_a_file_is_fetched_each_time_without_a_checksum(server, tmp_path):
    for _ in range(2):
        entry = addresses.fetch(at(server, "/moved"), "", tmp_path)
        assert read(entry) == b"content"
        assert entry.size == 7
    assert server.asked == ["/moved", "/f.tar"] * 2


def test_what_has_the_checksum_is_kept(server, tmp_path):
    for _ in range(2):
        entry = addresses.fetch(at(server, "/f.tar"), sum_of(b"content"), tmp_path)
        assert read(entry) == b"content"
    assert server.asked == ["/f.tar"]


def test_another_content_is_refused_and_not_kept(server, tmp_path):
    wrong = sum_of(b"else")
    with pytest.raises(GuestImageError, match=sum_of(b"content")):
        addresses.fetch(at(server, "/f.tar"), wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("/nothing", NotFoundError, "nothing at"),
        ("/broken", HostError, "500"),
        ("/short", HostError, "/short"),
    ],
)
def test_what_a_server_does_wrong(server, tmp_path, path, error, says):
    with pytest.raises(error, match=says):
        addresses.fetch(at(server, path), "", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nobody_there(server, tmp_path):
    server.server_close()
    with pytest.raises(HostError, match="cannot fetch"):
        addresses.fetch(at(server, "/f.tar"), "", tmp_path)


def test_more_than_is_allowed(server, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_IMAGE_LIMIT", "3")
    with pytest.raises(HostError, match="larger than 3"):
        addresses.fetch(at(server, "/f.tar"), "", tmp_path)


def test_names_and_checksums():
    assert addresses.name_of("http://x/a/b.tar?q=/c") == "b.tar"
    assert addresses.name_of("http://x/deep/a%20b") == "a b"
    assert addresses.name_of("http://x/") == addresses.name_of("http://x/..") == ""
    assert addresses.checked("SHA256:" + "A" * 64) == "sha256:" + "a" * 64
    for wrong in ("", "sha256", "sha256:" + "g" * 64, "md5:" + "a" * 32, "sha256:" + "a" * 63):
        with pytest.raises(InvalidValueError):
            addresses.checked(wrong)
