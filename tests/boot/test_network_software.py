"""Real programs of Debian's in a guest on the user network; their servers are the test's own.

apt, pip, wget, dig and DHCP clients as people have them, under Debian's cloud kernel. The real
archive is asked where RINGZERO_REAL_ARCHIVE=1 says so.
"""

import base64
import contextlib
import ensurepip
import functools
import hashlib
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from ringzero.errors import HostError
from ringzero.image import deb
from ringzero.image.micro import Recipe, ensure
from ringzero.image.packages import Apt
from ringzero.image.sources import debian_sources
from ringzero.vm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.engine, pytest.mark.peer]
LONG = os.environ.get("RINGZERO_FUZZ", "1") != "1"
# In MiB.
BULK = 1024 if LONG else 64
NET = Recipe(
    "net",
    packages=(
        *("apt", "dpkg", "libc-bin", "python3", "wget", "bind9-dnsutils", "iproute2"),
        *("isc-dhcp-client", "dhcpcd-base", "systemd", "debian-archive-keyring"),
    ),
)
HOST, HOST6 = "host.ringzero.internal", "fd72:7a00:0:2::2"


@pytest.fixture(scope="module")
def guest():
    try:
        image = ensure(NET)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="1G",
        agent=True,
        engine="soft",
        nets=["user"],
    ) as machine:
        say(machine, "mkdir -p /etc/apt/sources.list.d /var/lib/apt/lists /trial")
        yield machine


def say(machine, command, timeout=120):
    done = machine.run(command, timeout=timeout, text=True)
    assert done.exit_code == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(directory, context=None):
    """Serve a directory over HTTP on the host's loopback; yield the port."""
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


# ---- packages -------------------------------------------------------------

APT = "DEBIAN_FRONTEND=noninteractive apt-get -o APT::Sandbox::User=root -q"


def test_apt_get(guest, tmp_path):
    """`apt-get update && apt-get install hello`, the package Debian's, the archive the test's."""
    apt = Apt()
    (path,) = apt.download(apt.resolve(["hello"], dependencies=False))
    shutil.copy(path, tmp_path / "hello.deb")
    data = path.read_bytes()
    (tmp_path / "Packages").write_text(
        f"{deb.control(path).strip()}\nFilename: ./hello.deb\nSize: {len(data)}\n"
        f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
    )
    with serve(tmp_path) as port:
        source = f"deb [trusted=yes] http://{HOST}:{port} ./"
        say(guest, f"echo '{source}' >/etc/apt/sources.list")
        said = say(guest, f"{APT} update && {APT} install -y hello && hello", 300)
    assert said.splitlines()[-1] == "Hello, world!"
    say(guest, "rm /etc/apt/sources.list")


@pytest.mark.skipif("RINGZERO_REAL_ARCHIVE" not in os.environ, reason="RINGZERO_REAL_ARCHIVE=1")
def test_the_real_archive(guest):
    sources = "\n\n".join(source.render() for source in debian_sources(None))
    guest.run("cat >/etc/apt/sources.list.d/real.sources", input=sources, timeout=60)
    said = say(guest, f"{APT} update && {APT} install -y --reinstall hello && hello", 900)
    assert said.splitlines()[-1] == "Hello, world!"
    say(guest, "rm /etc/apt/sources.list.d/real.sources")


def wheel(place, name, code):
    """Make a wheel of one module (PEP 427)."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    lines = []
    path = place / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, text in files.items():
            archive.writestr(entry, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            lines.append(f"{entry},sha256={digest.rstrip(b'=').decode()},{len(text)}")
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")
    return path


def test_pip(guest, tmp_path):
    index = tmp_path / "simple" / "demo"
    index.mkdir(parents=True)
    made = wheel(index, "demo", "def greet(): return 'from the index'\n")
    (index / "index.html").write_text(f'<a href="{made.name}">{made.name}</a>')
    bundled = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
    if bundled is None:
        pytest.skip("this Python has no pip of its own")
    guest.run(f"cat >/trial/{bundled.name}", input=bundled.read_bytes(), timeout=60)
    with serve(tmp_path) as port:
        pip = f"python3 /trial/{bundled.name}/pip"
        url = f"--index-url http://{HOST}:{port}/simple/ --trusted-host {HOST}"
        say(guest, f"{pip} install -q --target /trial/site {url} demo", 300)
    said = say(guest, "PYTHONPATH=/trial/site python3 -c 'import demo; print(demo.greet())'")
    assert said == "from the index\n"


# ---- HTTP, bulk -----------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_wget_over_http_and_https(guest, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 "
    command += f"-subj /CN={HOST} -addext subjectAltName=DNS:{HOST}"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    served, content = tmp_path / "served", os.urandom(1 << 20)
    served.mkdir()
    (served / "f").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    guest.run("cat >/trial/ca.pem", input=certificate.read_bytes(), timeout=60)
    with serve(served, context) as port:
        url = f"https://{HOST}:{port}/f"
        said = say(guest, f"wget -qO- --ca-certificate=/trial/ca.pem {url} | sha256sum")
        assert said.split()[0] == digest
        assert guest.run(f"wget -qO- {url}", timeout=60).exit_code == 5, "nobody vouches for it"
    with serve(served) as port:
        assert say(guest, f"wget -qO- http://{HOST}:{port}/f | sha256sum").split()[0] == digest


PIECE = "bytes(range(256)) * 4096"


def test_bulk_both_ways(guest):
    """64 MiB (1 GiB in long runs) each way, summed at both ends."""
    piece, found = bytes(range(256)) * 4096, []
    whole = hashlib.sha256()
    for _ in range(BULK):
        whole.update(piece)

    def work(link):
        with link:
            digest = hashlib.sha256()
            while data := link.recv(1 << 18):
                digest.update(data)
            found.append(digest.hexdigest())
            for _ in range(BULK):
                link.sendall(piece)

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(120)
        threading.Thread(target=lambda: work(door.accept()[0]), daemon=True).start()
        code = f"""
import hashlib, socket
link = socket.create_connection(("10.0.2.2", {door.getsockname()[1]}))
piece = {PIECE}
for _ in range({BULK}): link.sendall(piece)
link.shutdown(socket.SHUT_WR)
digest = hashlib.sha256()
while data := link.recv(1 << 18): digest.update(data)
print(digest.hexdigest())
"""
        done = guest.run(["python3", "-c", code], timeout=1800, text=True)
    assert done.stdout.strip() == whole.hexdigest(), done.stderr
    assert found == [whole.hexdigest()]


def test_into_the_guest_over_ipv6(guest):
    """Ports of the host's ::1 and 127.0.0.1 to one server in the guest."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    server = "python3 -m http.server --bind :: 80"
    say(guest, f"cd /trial && echo inside >f && ({server} >/dev/null 2>&1 &)")
    say(guest, "until ss -lnt | grep -q ':80 '; do sleep 0.1; done")
    made = [*guest.nets.publish("[::1]:0:80"), *guest.nets.publish("0:80")]
    for forward in made:
        with socket.create_connection((forward.address, forward.port), 30) as link:
            link.sendall(b"GET /f HTTP/1.0\r\n\r\n")
            answer = b""
            while data := link.recv(4096):
                answer += data
        assert answer.endswith(b"\r\n\r\ninside\n")
        guest.nets.unpublish(str(forward.port))
    say(guest, "kill $(pidof python3)")


# ---- names ----------------------------------------------------------------


@contextlib.contextmanager
def resolver(answer):
    """Answer DNS over UDP and TCP at one port of the host's loopback; yield it."""

    def serve_tcp(door):
        with contextlib.suppress(OSError):
            while True:
                link, _ = door.accept()
                with link:
                    size = int.from_bytes(link.recv(2, socket.MSG_WAITALL), "big")
                    found = answer(link.recv(size, socket.MSG_WAITALL), True)
                    link.sendall(len(found).to_bytes(2, "big") + found)

    def serve_udp(link):
        with contextlib.suppress(OSError):
            while True:
                query, peer = link.recvfrom(4096)
                link.sendto(answer(query, False), peer)

    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.socket(type=socket.SOCK_DGRAM) as link,
    ):
        link.bind(door.getsockname())
        threading.Thread(target=serve_tcp, args=(door,), daemon=True).start()
        threading.Thread(target=serve_udp, args=(link,), daemon=True).start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)


def test_dig_over_udp_and_tcp(guest, monkeypatch):
    from scapy.layers.dns import DNS, DNSRR

    def answer(query, stream):
        asked = DNS(query)
        name = asked.qd[0].qname
        count = 99 if b"large" in name else 1
        if count > 1 and not stream:
            return bytes(DNS(id=asked.id, qr=1, tc=1, qd=asked.qd))
        records = [DNSRR(rrname=name, rdata=f"192.0.2.{n + 1}") for n in range(count)]
        return bytes(DNS(id=asked.id, qr=1, qd=asked.qd, an=records))

    with resolver(answer) as port:
        monkeypatch.setattr("ringzero.net.proxy.resolver._PORT", port)
        (backend,) = guest.nets
        monkeypatch.setattr(backend.network.load().resolver, "servers", ["127.0.0.1"])
        assert say(guest, "dig +short small.example") == "192.0.2.1\n"
        assert say(guest, "dig +tcp +short small.example") == "192.0.2.1\n"
        assert len(say(guest, "dig +short large.example").split()) == 99
    assert say(guest, f"dig +short {HOST}") == "10.0.2.2\n"
    assert say(guest, f"dig +short -t AAAA {HOST}") == f"{HOST6}\n"
    assert say(guest, "dig +short -x 10.0.2.2") == f"{HOST}.\n"


# ---- DHCP clients ---------------------------------------------------------

BARE = "ip -4 addr flush dev eth0; ip -6 addr flush dev eth0 scope global; "


@pytest.mark.parametrize(
    "client",
    [
        "udhcpc -i eth0 -n -q -f -s /sbin/dhcp",
        "dhclient -4 -1 -v eth0",
        "dhcpcd -4 --oneshot --nobackground --waitip=4 eth0",
    ],
    ids=["udhcpc", "isc-dhcp-client", "dhcpcd"],
)
def test_dhcp_clients(guest, client):
    done = guest.run(BARE + client, timeout=90, text=True)
    said = say(guest, "ip -4 -o addr show dev eth0; ip -4 route; cat /etc/resolv.conf")
    said += done.stdout + done.stderr
    assert "inet 10.0.2.15/24" in said and "default via 10.0.2.2" in said, said
    assert "nameserver 10.0.2.3" in said, said
    guest.run("kill $(pidof dhclient dhcpcd)", timeout=60)


def test_dhcpv6_without_addresses(guest):
    """An information request (RFC 8415 section 6.1), as router advertisements ask for."""
    show = '#!/bin/sh\\necho "$reason $new_dhcp6_name_servers $new_dhcp6_domain_search"\\n'
    say(guest, f"printf '{show}' >/trial/show; chmod +x /trial/show")
    wait = "while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.2; done; "
    client = "(timeout 60 dhclient -6 -S -1 -d -sf /trial/show eth0 >/trial/said 2>&1 &); "
    wait += client + "for n in $(seq 200); do grep -q ringzero.internal /trial/said && break; "
    said = say(guest, wait + "sleep 0.2; done; kill $(pidof dhclient); cat /trial/said")
    assert "fd72:7a00:0:2::3" in said and "ringzero.internal" in said, said


def test_networkd(guest):
    """systemd-networkd by itself: DHCPv4, and addresses by router advertisements."""
    say(
        guest,
        "mkdir -p /etc/systemd/network /run/systemd/netif /run/dbus; "
        "tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id; "
        "printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=yes\\n' >/etc/systemd/network/e.network; "
        "id systemd-network >/dev/null 2>&1 || "
        "echo 'systemd-network:x:998:998::/:/bin/false' >>/etc/passwd; "
        "grep -q systemd-network /etc/group || echo 'systemd-network:x:998:' >>/etc/group; "
        "chown -R systemd-network:systemd-network /run/systemd/netif",
    )
    # Without udev it takes interfaces as they are only where /sys says that this is a container.
    run = "mount -o remount,ro /sys; (SYSTEMD_LOG_TARGET=console /lib/systemd/systemd-networkd "
    run += ">/trial/networkd 2>&1 &); for n in $(seq 100); do ip addr show dev eth0 >/trial/found; "
    run += "grep -q 'inet 10.0.2.15' /trial/found && grep -q 'inet6 fd72' /trial/found && break; "
    run += "sleep 0.3; done; cat /run/systemd/netif/leases/* /trial/found /trial/networkd; "
    said = say(guest, BARE + run + "kill $(pidof systemd-networkd); mount -o remount,rw /sys")
    assert re.search(r"inet 10\.0\.2\.15/24 .*dynamic", said), said
    assert "inet6 fd72:7a00:0:2:" in said and "SERVER_ADDRESS=10.0.2.2" in said, said
