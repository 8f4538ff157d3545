"""Ways to a registry: TLS with certificates of one's own, proxies, identity tokens, helpers."""

import base64
import contextlib
import http.client
import json
import select
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ringzero.errors import HostError, NotFoundError
from ringzero.image.oci import registry as client
from ringzero.image.oci.certificates import Trust
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.oci.authority import make_authority, openssl
from tests.image.oci.images import FakeRegistry, Image

NAME = "registry.test"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "_PAUSE", 0.01)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def take(name, cache, **more):
    return pull(parse(name), cache=cache, architecture="amd64", **more)


IMAGE = Image([{"a": b"1"}])


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority"), NAME)


@pytest.fixture
def secure(authority):
    """A registry that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.crt", authority / "server.key")
    context.load_verify_locations(authority / "ca.crt")
    made = FakeRegistry(context)
    made.context = context
    made.add("app", IMAGE)
    yield made
    made.close()


def certificates(tmp_path, host, authority, *, own=False):
    """Make certs.d with the authority for `host`, and with what we show of ourselves."""
    place = tmp_path / "certs.d" / host
    place.mkdir(parents=True)
    (place / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    if own:
        (place / "client.cert").write_bytes((authority / "client.crt").read_bytes())
        (place / "client.key").write_bytes((authority / "client.key").read_bytes())
    return place


# ---- TLS ---------------------------------------------------------------------


def test_an_authority_of_ones_own(secure, cache, tmp_path, monkeypatch, authority):
    monkeypatch.setenv("RINGZERO_CERTS_DIR", str(tmp_path / "certs.d"))
    certificates(tmp_path, secure.host, authority)
    assert take(f"{secure.host}/app", cache).digest == IMAGE.digest


def test_the_folder_of_containers(secure, cache, tmp_path, monkeypatch, authority):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    certificates(tmp_path / "config" / "containers", secure.host, authority)
    take(f"{secure.host}/app", cache)


def test_another_authority_is_not_trusted(secure, cache, tmp_path, monkeypatch):
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key",
            "-out", tmp_path / "ca.crt", "-subj", "/CN=other")  # fmt: skip
    with pytest.raises(HostError, match="certificate verify failed") as told:
        take(f"{secure.host}/app", cache, trust=Trust(folder=tmp_path))
    assert f"certs.d/{secure.host}/ca.crt" in told.value.hint
    assert not [path for path, *_ in secure.log]
    take(f"{secure.host}/app", cache, trust=Trust(verify=False, folder=tmp_path))


def test_a_registry_of_this_machine_by_tls_without_certificates(secure, cache):
    """As Docker has it: what is on this machine need not show a certificate that is trusted."""
    take(f"{secure.host}/app", cache)


def test_a_registry_that_wants_to_know_us(secure, cache, tmp_path, monkeypatch, authority):
    secure.context.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("RINGZERO_CERTS_DIR", str(tmp_path / "certs.d"))
    place = certificates(tmp_path, secure.host, authority)
    with pytest.raises(HostError):
        take(f"{secure.host}/app", cache)
    certificates(tmp_path / "own", secure.host, authority, own=True)
    take(f"{secure.host}/app", cache, trust=Trust(folder=tmp_path / "own/certs.d" / secure.host))
    (place / "client.cert").write_text("x")
    with pytest.raises(HostError, match="has no key beside it"):
        take(f"{secure.host}/app", cache)
    (place / "client.key").write_text("x")
    with pytest.raises(HostError, match="cannot take the certificate"):
        take(f"{secure.host}/app", cache)


def test_insecure_registries_may_speak_plain_http(registry, cache, monkeypatch):
    registry.add("app", IMAGE)
    port = registry.host.rpartition(":")[2]
    real = socket.getaddrinfo

    def resolved(host, *rest, **more):
        return real("127.0.0.1" if host == NAME else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    name = f"{NAME}:{port}/app"
    with pytest.raises(HostError, match="cannot reach") as told:
        take(name, cache)
    assert f"RINGZERO_HTTP_REGISTRIES={NAME}:{port}" in told.value.hint
    take(name, cache, trust=Trust(verify=False))
    with pytest.raises(NotFoundError, match="unknown name"):
        take(f"{NAME}:{port}/none", cache, trust=Trust(verify=False))
    monkeypatch.setenv("RINGZERO_INSECURE_REGISTRIES", f"{NAME}:{port}")
    take(name, cache)


# ---- proxies -----------------------------------------------------------------


class Proxy:
    """A proxy that leads HOST:PORT where `routes` says; it wants `login` (USER:PASSWORD)."""

    def __init__(self, routes, login=None):
        self.log = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_CONNECT(self):
                outer.log.append(self.requestline)
                if not self._known():
                    return
                there = socket.create_connection(outer._address(routes[self.path]))
                self.send_response(200)
                self.end_headers()
                outer._join(self.connection, there)

            def do_GET(self):
                outer.log.append(self.requestline)
                if not self._known():
                    return
                host, _, path = self.path.removeprefix("http://").partition("/")
                connection = http.client.HTTPConnection(routes[host])
                headers = {k: v for k, v in self.headers.items() if not k.startswith("Proxy-")}
                connection.request("GET", f"/{path}", headers=headers)
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("date", "server"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def _known(self):
                pair = base64.b64encode((login or "").encode()).decode()
                if login is None or self.headers["Proxy-Authorization"] == f"Basic {pair}":
                    return True
                self.send_error(407)
                return False

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def _address(text):
        host, _, port = text.rpartition(":")
        return host, int(port)

    @staticmethod
    def _join(one, other):
        ends = {one: other, other: one}
        with contextlib.suppress(OSError), contextlib.closing(other):
            while True:
                for end in select.select([*ends], [], [], 20)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def test_plain_http_through_a_proxy(registry, cache, monkeypatch):
    registry.add("app", IMAGE)
    proxy = Proxy({NAME: registry.host}, "me:pass word")
    try:
        monkeypatch.setenv("RINGZERO_HTTP_REGISTRIES", NAME)
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        with pytest.raises(HostError, match="answers 407"):
            take(f"{NAME}/app", cache)
        monkeypatch.setenv("http_proxy", f"http://me:pass%20word@{proxy.host}")
        take(f"{NAME}/app", cache)
        assert proxy.log[-1].startswith(f"GET http://{NAME}/v2/app/")
        assert not any("Proxy-Authorization" in headers for *_, headers in registry.log)
    finally:
        proxy.close()


def test_tls_through_a_proxy(secure, cache, monkeypatch, tmp_path, authority):
    proxy = Proxy({f"{NAME}:443": secure.host}, "me:secret")
    try:
        certificates(tmp_path, NAME, authority)
        monkeypatch.setenv("RINGZERO_CERTS_DIR", str(tmp_path / "certs.d"))
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with pytest.raises(HostError, match=r"through the proxy .* 407") as told:
            take(f"{NAME}/app", cache)
        assert "https_proxy" in told.value.hint
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@{proxy.host}")
        take(f"{NAME}/app", cache)
        assert proxy.log[-1] == f"CONNECT {NAME}:443 HTTP/1.0"
    finally:
        proxy.close()


def test_registries_of_this_machine_and_of_no_proxy_are_asked_directly(
    registry, cache, monkeypatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    take(registry.add("app", IMAGE), cache)
    monkeypatch.setenv("RINGZERO_HTTP_REGISTRIES", NAME)
    with pytest.raises(HostError, match=r"through the proxy http://127\.0\.0\.1:1"):
        take(f"{NAME}/app", cache)
    monkeypatch.setenv("no_proxy", f"other.test,{NAME}")
    with pytest.raises(HostError, match=f"registry {NAME}: "):
        take(f"{NAME}/app", cache)


@pytest.mark.parametrize("proxy", ["https://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_proxies_of_other_kinds_are_told(cache, monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(HostError, match="cannot be used") as told:
        take(f"{NAME}/app", cache)
    assert "https_proxy=http://HOST:PORT" in told.value.hint


# ---- who we are --------------------------------------------------------------


def configuration(monkeypatch, tmp_path, config):
    (tmp_path / "docker").mkdir(exist_ok=True)
    (tmp_path / "docker" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))


def test_an_identity_token(registry, cache, monkeypatch, tmp_path):
    registry.token, registry.identity = "t0ken", "refresh-me"
    name = registry.add("app", IMAGE)
    configuration(monkeypatch, tmp_path, {"auths": {registry.host: {"identitytoken": "wrong"}}})
    with pytest.raises(HostError, match="does not let us"):
        take(name, cache)
    configuration(
        monkeypatch, tmp_path, {"auths": {registry.host: {"identitytoken": "refresh-me"}}}
    )
    take(name, cache)
    form = [form for path, form, _ in registry.log if path == "/token"][-1]
    assert form["grant_type"] == ["refresh_token"] and form["service"] == ["fake"]


def helper(tmp_path, monkeypatch, script):
    path = tmp_path / "bin" / "docker-credential-test"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\nread server\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")


def test_a_helper_with_an_identity_token(registry, cache, monkeypatch, tmp_path):
    registry.token, registry.identity = "t0ken", "refresh-me"
    helper(tmp_path, monkeypatch, 'echo \'{"Username": "<token>", "Secret": "refresh-me"}\'')
    configuration(monkeypatch, tmp_path, {"credsStore": "test"})
    take(registry.add("app", IMAGE), cache)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo no keyring here >&2; exit 1", "failed: no keyring here"),
        ("echo nonsense", "answers nonsense"),
        ("echo '[]'", "answers nonsense"),
    ],
)
def test_a_helper_that_fails(registry, cache, monkeypatch, tmp_path, script, told):
    registry.basic = ("me", "secret")
    helper(tmp_path, monkeypatch, script)
    configuration(monkeypatch, tmp_path, {"credsStore": "test"})
    with pytest.raises(HostError, match=told):
        take(registry.add("app", IMAGE), cache)


def test_a_helper_that_is_not_there(registry, cache, monkeypatch, tmp_path):
    registry.basic = ("me", "secret")
    configuration(monkeypatch, tmp_path, {"credHelpers": {registry.host: "not-there"}})
    with pytest.raises(HostError, match="docker-credential-not-there does not run"):
        take(registry.add("app", IMAGE), cache)


def test_a_helper_that_knows_nobody(registry, cache, monkeypatch, tmp_path):
    helper(tmp_path, monkeypatch, "echo credentials not found in native keychain; exit 1")
    configuration(monkeypatch, tmp_path, {"credsStore": "test"})
    registry.token = "t0ken"
    take(registry.add("app", IMAGE), cache)


def test_a_mirror_by_its_url_and_one_that_has_it_not(registry, cache, monkeypatch):
    empty = FakeRegistry()
    try:
        registry.images["quay"] = IMAGE
        registry.images["app"] = IMAGE
        mirrors = f"quay.test=http://{empty.host}/,quay.test={registry.host}"
        monkeypatch.setenv("RINGZERO_REGISTRY_MIRRORS", mirrors)
        take("quay.test/app", cache)
        assert [path for path, *_ in empty.log] == ["/v2/app/manifests/latest"]
    finally:
        empty.close()
