"""Debian's docker-registry on loopback: plain, with TLS, with passwords, with a token server."""

import base64
import contextlib
import hashlib
import json
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.image.fs.made import tool

# What tools/test-peers fetches.
PEERS = Path(__file__).parents[3] / "build" / "peers" / "bin"


def peer(name):
    """Return the program of a peer, or skip."""
    if (PEERS / name).exists():
        return str(PEERS / name)
    try:
        return tool(name)
    except pytest.skip.Exception:
        pytest.skip(f"needs {name}: tools/test-peers fetches it")


def free_host():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def docker_registry(place, more="", http=""):
    """Run a registry in the folder `place`; yield its address."""
    program = peer("docker-registry")
    place.mkdir(exist_ok=True)
    host = free_host()
    config = place / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage:\n  filesystem:\n    rootdirectory: {place}/blobs\n"
        f"http:\n  addr: {host}\n  secret: for-one-test\n{http}{more}"
    )
    with (place / "log").open("wb") as log:
        child = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            assert child.poll() is None, (place / "log").read_text()
            time.sleep(0.05)
        yield host
    finally:
        child.terminate()
        child.wait(10)


def with_tls(authority):
    """Return the lines for TLS with the certificates of a folder."""
    return (
        f"  tls:\n    certificate: {authority}/server.crt\n    key: {authority}/server.key\n"
        "    minimumtls: tls1.2\n"
    )


def with_tokens(authority, realm):
    """Return the lines for tokens that the server at `realm` gives."""
    return (
        f"auth:\n  token:\n    realm: {realm}\n    service: tests\n    issuer: tester\n"
        f"    rootcertbundle: {authority}/ca.crt\n"
    )


class TokenServer:
    """Gives tokens, signed with server.key of `authority`, to who knows the name and secret."""

    def __init__(self, authority, login):
        self.authority, self.asked = authority, []
        expected = "Basic " + base64.b64encode(":".join(login).encode()).decode()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                query = parse_qs(urlsplit(self.path).query)
                outer.asked.append(query)
                if self.headers["Authorization"] != expected:
                    self.send_error(401)
                    return
                data = json.dumps({"token": outer.token(query)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.realm = f"http://127.0.0.1:{self.server.server_port}/token"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def token(self, query):
        """Return a JSON web token for the scopes of a query (distribution's "JWT")."""
        access = []
        for scope in query.get("scope", []):
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {"iss": "tester", "sub": "me", "aud": "tests", "exp": now + 300, "nbf": now - 60,
                  "iat": now, "jti": hashlib.sha256(str(query).encode()).hexdigest(),
                  "access": access}  # fmt: skip
        pem = (self.authority / "server.crt").read_text().split("-----")[2]
        head = {"typ": "JWT", "alg": "ES256", "x5c": ["".join(pem.split())]}
        text = f"{_part(json.dumps(head).encode())}.{_part(json.dumps(claims).encode())}"
        signed = subprocess.run(
            [tool("openssl"), "dgst", "-sha256", "-sign", self.authority / "server.key"],
            input=text.encode(), capture_output=True, check=True,
        ).stdout  # fmt: skip
        return f"{text}.{_part(_numbers(signed))}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def _part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _numbers(signature):
    """Return the two numbers of a DER signature, 32 bytes each (RFC 7518, 3.4)."""
    numbers, at = b"", 2
    for _ in range(2):
        length = signature[at + 1]
        numbers += signature[at + 2 : at + 2 + length].lstrip(b"\0").rjust(32, b"\0")
        at += 2 + length
    return numbers
