"""Images of containers made in memory, and a small registry that serves them, or misbehaves."""

import base64
import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import zstandard

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
PACKERS = {
    "": lambda data: data,
    "+gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "+zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def digest(data):
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(files):
    """Return a tar of {name: content}: bytes, None (a directory), ("->", target), or a TarInfo."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            elif content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif isinstance(content, tuple):
                info.type = tarfile.SYMTYPE if content[0] == "->" else tarfile.LNKTYPE
                info.linkname = content[1]
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Image:
    """An image: its blobs by digest, and the digest of its manifest."""

    def __init__(self, layers, config=None, packing="+gzip", architecture="amd64"):
        self.blobs, self.types = {}, {}
        plain = [tar(layer) if isinstance(layer, dict) else layer for layer in layers]
        packed = [PACKERS[packing](layer) for layer in plain]
        value = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in plain]},
        }
        self.layers = [self._put(layer, LAYER + packing) for layer in packed]
        self.rewrite(value)

    def rewrite(self, config):
        """Take a configuration, whatever it says."""
        self.config = self._put(json.dumps(config).encode(), CONFIG)
        document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": self.config,
                    "layers": self.layers}  # fmt: skip
        self.descriptor = self._put(json.dumps(document).encode(), MANIFEST)
        self.digest = self.descriptor["digest"]

    def _put(self, data, kind):
        self.blobs[digest(data)] = data
        self.types[digest(data)] = kind
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    def index(self, *others):
        """Turn into an index of this image and `others`."""
        listed = []
        for image, platform in ((self, "amd64"), *others):
            self.blobs |= image.blobs
            self.types |= image.types
            listed.append(
                image.descriptor | {"platform": {"architecture": platform, "os": "linux"}}
            )
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
        self.digest = self._put(json.dumps(document).encode(), INDEX)["digest"]
        return self

    def write_layout(self, place, name="1"):
        """Write the image as an OCI layout."""
        (place / "blobs" / "sha256").mkdir(parents=True)
        for key, data in self.blobs.items():
            (place / "blobs" / "sha256" / key[7:]).write_bytes(data)
        (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        listed = self.descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}}
        document = {"schemaVersion": 2, "manifests": [listed]}
        (place / "index.json").write_text(json.dumps(document))


class FakeRegistry:
    """A registry on loopback. What it is to do wrong is set from outside:

    `cut`: how often a blob breaks off in its middle; `token`: the bearer token that it wants,
    `basic`: (name, secret) that it, or its token server, wants; `identity`: the identity token
    that the token server wants; `redirect`: another server for blobs; `busy`: how often it
    answers 503; `ranges`: whether it takes up a transfer; `stall`: an event that blobs wait for
    in their middle. `tls` is an ssl.SSLContext.
    """

    def __init__(self, tls=None):
        self.images, self.log = {}, []
        self.cut = self.busy = 0
        self.token = self.basic = self.identity = self.redirect = self.stall = None
        self.ranges = True
        self.stalled = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.serve(self)

            def do_POST(self):
                outer.serve_token(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, name, image):
        self.images[name] = image
        return f"{self.host}/{name}"

    def serve_token(self, request):
        """Answer to an identity token (distribution's "OAuth 2")."""
        form = parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode())
        self.log.append((request.path, form, dict(request.headers)))
        if request.path != "/token" or form.get("refresh_token") != [self.identity]:
            return self.answer(request, 401)
        return self.answer(request, 200, json.dumps({"access_token": self.token}).encode())

    def serve(self, request):
        path, _, query = request.path.partition("?")
        authorization = request.headers.get("Authorization")
        self.log.append((path, query, dict(request.headers)))
        if path == "/token":
            if self.identity or (self.basic and authorization != self._basic()):
                return self.answer(request, 401)
            return self.answer(request, 200, json.dumps({"token": self.token}).encode())
        if self.token is not None and authorization != f"Bearer {self.token}":
            realm = f'Bearer realm="http://{self.host}/token",service="fake",scope="pull"'
            return self.answer(request, 401, headers={"WWW-Authenticate": realm})
        if self.token is None and self.basic and authorization != self._basic():
            return self.answer(request, 401, headers={"WWW-Authenticate": 'Basic realm="fake"'})
        if self.busy:
            self.busy -= 1
            return self.answer(request, 503)
        name, _, rest = path.removeprefix("/v2/").partition("/")
        kind, _, target = rest.partition("/")
        image = self.images.get(f"{name}:{target}") or self.images.get(name)
        if image is None:
            errors = {"errors": [{"code": "NAME_UNKNOWN", "message": "unknown name"}]}
            return self.answer(request, 404, json.dumps(errors).encode())
        if kind == "manifests" and not target.startswith("sha256:"):
            target = image.digest
        if target not in image.blobs:
            return self.answer(request, 404)
        if kind == "blobs" and self.redirect:
            there = f"http://{self.redirect}/v2/{name}/blobs/{target}"
            return self.answer(request, 307, headers={"Location": there})
        data, headers = image.blobs[target], {"Content-Type": image.types[target]}
        begin, status = 0, 200
        asked = request.headers.get("Range")
        if asked and self.ranges:
            begin, status = int(asked[6:].rstrip("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        if kind == "blobs" and self.cut and len(data) > 2000:
            self.cut -= 1
            part = data[begin : begin + max(1, (len(data) - begin) // 2)]
            headers["Content-Length"] = str(len(data) - begin)
            request.close_connection = True
            return self.answer(request, status, part, headers)
        if kind == "blobs" and self.stall and len(data) > 2000:
            return self._halves(request, status, data[begin:], headers)
        return self.answer(request, status, data[begin:], headers)

    def _halves(self, request, status, data, headers):
        """Send one half, and the other one when `stall` is set."""
        stall = self.stall
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(data[: len(data) // 2])
            self.stalled.set()
            stall.wait(600)
            request.wfile.write(data[len(data) // 2 :])

    def _basic(self):
        return "Basic " + base64.b64encode(":".join(self.basic).encode()).decode()

    def answer(self, request, status, data=b"", headers=None):
        request.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)
