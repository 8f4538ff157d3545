"""Pushing to a registry on loopback, and to Debian's; layouts that are saved; history."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from ringzero.errors import HostError, InvalidValueError, NotFoundError
from ringzero.image.oci import registry as client
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import find, history, push, save
from ringzero.image.oci.reference import parse, parse_reference
from tests.image.oci.docker_registry import docker_registry, peer
from tests.image.oci.images import Image, digest

LAYERS = [{"a": b"1" * 3000}, {"b": b"2"}]


class Receiver:
    """A registry that takes images. `busy`: how often it answers 503; `token`: what it wants."""

    def __init__(self):
        self.blobs, self.manifests, self.log = {}, {}, []
        self.busy, self.token, self.lost = 0, None, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                outer.serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815 - its base names them

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, request):
        parts = urlsplit(request.path)
        data = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        self.log.append((request.command, parts.path))
        if parts.path == "/token":
            return self.answer(request, 200, json.dumps({"token": self.token}).encode())
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            realm = f'Bearer realm="http://{self.host}/token",service="x",scope="pull,push"'
            return self.answer(request, 401, headers={"WWW-Authenticate": realm})
        if self.busy:
            self.busy -= 1
            return self.answer(request, 503)
        kind, _, target = parts.path.removeprefix("/v2/app/").partition("/")
        if request.command == "HEAD":
            return self.answer(request, 200 if target in self.blobs else 404)
        if request.command == "GET" and target:
            return self.give(request, kind, target)
        if request.command == "POST":
            return self.answer(request, 202, headers={"Location": "/v2/app/blobs/uploads/7?s=1"})
        if kind == "blobs":
            name = parse_qs(parts.query)["digest"][0]
            if self.lost:
                self.lost -= 1
                request.close_connection = True
                return request.connection.shutdown(socket.SHUT_RDWR)
            if digest(data) != name:
                return self.answer(request, 400)
            self.blobs[name] = data
        else:
            self.manifests[target] = (data, request.headers["Content-Type"])
        return self.answer(request, 201)

    def give(self, request, kind, target):
        if kind == "blobs":
            found = (self.blobs.get(target), "application/octet-stream")
        else:
            found = self.manifests.get(target, (None, ""))
        if found[0] is None:
            return self.answer(request, 404)
        return self.answer(request, 200, found[0], {"Content-Type": found[1]})

    def answer(self, request, status, data=b"", headers=None):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE", 0.01)
    found = Receiver()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def image(tmp_path, cache):
    Image(LAYERS).write_layout(tmp_path / "layout")
    return pull(parse(f"oci:{tmp_path}/layout"), cache=cache, architecture="amd64")


def send(image, receiver, cache, tag="1"):
    return push(image, parse_reference(f"{receiver.host}/app:{tag}"), cache=cache)


def test_all_of_an_image_goes_over_and_once_only(image, receiver, cache):
    sent = send(image, receiver, cache)
    assert set(receiver.blobs) == {*image.layers, image.config}
    assert sent == sum(map(len, receiver.blobs.values()))
    data, kind = receiver.manifests["1"]
    assert digest(data) == image.digest
    assert json.loads(data).get("mediaType", kind) == kind
    assert send(image, receiver, cache, "2") == 0
    assert set(receiver.manifests) == {"1", "2"}


def test_a_registry_that_wants_a_token_and_patience(image, receiver, cache):
    receiver.token, receiver.busy = "t", 3
    send(image, receiver, cache)
    assert "1" in receiver.manifests


def test_a_connection_that_breaks_is_made_again(image, receiver, cache):
    receiver.lost = 2
    send(image, receiver, cache)
    assert set(receiver.blobs) == {*image.layers, image.config}


def test_a_registry_that_never_takes_it(image, receiver, cache):
    receiver.busy = 1000
    with pytest.raises(HostError, match="answers 503"):
        send(image, receiver, cache)
    assert not receiver.manifests


def test_nobody_is_there(image, receiver, cache):
    receiver.server.shutdown()
    receiver.server.server_close()
    with pytest.raises(HostError, match="cannot reach"):
        send(image, receiver, cache)


def test_a_layout_that_is_saved_is_the_image(image, tmp_path, cache):
    save(image, tmp_path / "saved", "app", cache=cache)
    again = pull(parse(f"oci:{tmp_path}/saved"), cache=tmp_path / "other", architecture="amd64")
    assert again.digest == image.digest
    with pytest.raises(InvalidValueError, match="exists"):
        save(image, tmp_path / "saved", "app", cache=cache)


def test_history_and_names(image, cache):
    steps = history(image, cache)
    assert [step["layer"] for step in steps if step["layer"]] == list(image.layers)
    assert find(image.digest[:20], cache).digest == image.digest
    with pytest.raises(NotFoundError):
        find("nothing", cache)


@pytest.mark.peer
def test_skopeo_finds_what_was_pushed_to_debians_registry(image, tmp_path, cache):
    import subprocess

    skopeo = peer("skopeo")
    with docker_registry(tmp_path / "registry") as host:
        push(image, parse_reference(f"{host}/app:1"), cache=cache)
        told = subprocess.run(
            [skopeo, "inspect", "--tls-verify=false", f"docker://{host}/app:1"],
            capture_output=True, check=True,
        )  # fmt: skip
        found = json.loads(told.stdout)
        assert found["Digest"] == image.digest
        assert found["Layers"] == list(image.layers)
        elsewhere = pull(parse(f"{host}/app:1"), cache=tmp_path / "elsewhere", architecture="amd64")
        assert elsewhere.digest == image.digest
