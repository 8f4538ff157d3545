"""The user network from inside the default guest: out, in, and in copies; servers on loopback."""

import contextlib
import hashlib
import http.server
import os
import socket
import struct
import threading
import time
import urllib.request

import pytest

from ringzero.errors import ConflictError, HostError, NotFoundError
from ringzero.vm.machine import Machine

pytestmark = [pytest.mark.boot, pytest.mark.engine]
CONTENT = os.urandom(3 << 20)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        text = hashlib.sha256(data).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    address_family = socket.AF_INET


class Server6(Server):
    address_family = socket.AF_INET6


def serve(kind, address):
    server = kind((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def port():
    server = serve(Server, "127.0.0.1")
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def machine():
    try:
        # On a busy host the 200 connections of one test are 600 processes at once.
        machine = Machine(image="micro", memory="512M", engine="soft")
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        machine.run("mkdir /w; echo hello >/w/index.html; httpd -h /w -p 80")
        yield machine


def say(machine, command):
    return machine.run(command, timeout=60, check=True, text=True).stdout


def fetch(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
        return answer.read()


def test_it_is_set_up_before_the_first_command(machine):
    assert "inet 10.0.2.15/24 brd 10.0.2.255" in say(machine, "ip -4 addr show eth0")
    assert say(machine, "ip route").startswith("default via 10.0.2.2 dev eth0")
    assert "nameserver 10.0.2.3\n" in say(machine, "cat /etc/resolv.conf")
    assert "127.0.0.1" in say(machine, "ip addr show lo")


@contextlib.contextmanager
def resolver(name):
    """Answer DNS at a port of the host's loopback, which is yielded: `name` is the gateway."""
    known = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"

    def serve():
        with contextlib.suppress(OSError):
            while query := (received := link.recvfrom(4096))[0]:
                client = received[1]
                question = query[12 : query.index(b"\0", 12) + 5]
                found = question == known + b"\0\1\0\1"
                there = question[:-4] == known
                answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x0a\0\2\2" if found else b""
                counts = struct.pack(">HHHHH", 0x8180 if there else 0x8183, 1, found, 0, 0)
                link.sendto(query[:2] + counts + question + answer, client)

    with socket.socket(type=socket.SOCK_DGRAM) as link:
        link.bind(("127.0.0.1", 0))
        threading.Thread(target=serve, daemon=True).start()
        yield link.getsockname()[1]
        # It says that there is no connection, and wakes who reads.
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)


def test_the_hosts_search_domains(tmp_path, monkeypatch, port):
    """A guest that is set up without DHCP looks for names where the host does."""
    place = tmp_path / "resolv.conf"
    place.write_text("nameserver 127.0.0.1\nsearch one.example two.example\n")
    monkeypatch.setattr("ringzero.host.resolvconf.RESOLV_CONF", place)
    with resolver("short.two.example") as number:
        monkeypatch.setattr("ringzero.net.proxy.resolver._PORT", number)
        with Machine(image="micro", memory="128M", engine="soft") as fresh:
            (backend,) = fresh.nets
            backend.network.load().resolver.servers = ["127.0.0.1"]
            assert " one.example two.example\n" in say(fresh, "cat /etc/resolv.conf")
            assert SUM in say(fresh, f"wget -qO- http://short:{port}/f | sha256sum")
            assert fresh.run(f"wget -qO- http://other:{port}/f", timeout=60).exit_code != 0


def test_out_and_by_name_with_equal_checksums(machine, port):
    command = f"wget -qO- http://host.ringzero.internal:{port}/f | sha256sum"
    assert say(machine, command).split()[0] == SUM
    # Text: busybox sends a file up to its first zero.
    url = f"http://10.0.2.2:{port}/"
    command = f"wget -qO- {url} | base64 >/f; wget -qO- --post-file=/f {url}; echo; sha256sum /f"
    told, own = say(machine, command).splitlines()
    assert told == own.split()[0]


def test_over_ipv6(machine):
    try:
        server = serve(Server6, "::1")
    except OSError:
        pytest.skip("no IPv6 here")
    wait = "while ip -6 addr show eth0 | grep -q tentative; do sleep 0.1; done; "
    wait += "until ip -6 addr show eth0 | grep -q fd72; do sleep 0.1; done; "
    command = wait + f"wget -qO- 'http://[fd72:7a00:0:2::2]:{server.server_port}/f' | sha256sum"
    assert say(machine, command).split()[0] == SUM
    server.shutdown()


def test_many_connections_at_once(machine, port):
    command = (
        "for n in $(seq 200); do (wget -qO- http://10.0.2.2:%d/f | sha256sum >/tmp/s$n) & "
        "done; wait; cat /tmp/s* | sort | uniq -c"
    )
    global CONTENT
    whole, CONTENT = CONTENT, CONTENT[:20000]
    try:
        found = machine.run(command % port, timeout=180, text=True).stdout.split()
        assert found[:2] == ["200", hashlib.sha256(CONTENT).hexdigest()]
    finally:
        CONTENT = whole


def test_ports_come_and_go_while_it_runs(machine):
    (made,) = machine.nets.publish("0:80")
    assert made in machine.nets.ports()
    assert fetch(made.port) == b"hello\n"
    with pytest.raises(ConflictError, match="is taken") as caught:
        machine.nets.publish(f"{made.port}:80")
    assert "ss -ltnp" in caught.value.hint
    assert len(machine.config.nets[0].ports) == 1
    assert machine.nets.unpublish(str(made.port)) == [made]
    assert not machine.nets.ports() and not machine.config.nets[0].ports
    with pytest.raises(OSError):
        fetch(made.port)
    with pytest.raises(NotFoundError):
        machine.nets.unpublish("1")


def test_all_ports_of_a_range_or_none(machine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        number = taken.getsockname()[1]
        with pytest.raises(ConflictError):
            machine.nets.publish(f"{number - 1}-{number}:80-81")
    assert not machine.nets.ports()


def test_a_copy_has_ports_and_a_mac_of_its_own(machine, port):
    (made,) = machine.nets.publish("0:80")
    (copy,) = machine.fork(start=True)
    with copy:
        (own,) = copy.nets.ports()
        assert own.port not in (0, made.port)
        assert fetch(own.port) == fetch(made.port) == b"hello\n"
        mac = say(copy, "cat /sys/class/net/eth0/address").strip()
        assert mac == copy.config.nets[0].mac != machine.config.nets[0].mac
        command = f"wget -qO- http://10.0.2.2:{port}/f | sha256sum"
        assert say(copy, command).split()[0] == SUM
    machine.nets.unpublish(str(made.port))


def test_counters(machine):
    counted = machine.stats()["net"]["eth0"]
    assert counted["received_bytes"] > len(CONTENT) < counted["sent_bytes"]


def test_no_more_than_the_rate_passes_and_hardly_less():
    """Both ways, a full bucket of a second at first; slower where the machine is busy."""
    rate, size, took = 1 << 20, 3 << 20, []
    with (
        socket.create_server(("127.0.0.1", 0)) as sink,
        socket.create_server(("127.0.0.1", 0)) as source,
        Machine(image="micro", memory="128M", engine="soft", net=f"user,rate={rate}") as machine,
    ):
        machine.run("true", timeout=60)

        def read():
            link, _ = sink.accept()
            began = time.monotonic()
            with link:
                while link.recv(1 << 16):
                    pass
            took.append(time.monotonic() - began)

        reader = threading.Thread(target=read)
        reader.start()
        name = sink.getsockname()[1]
        machine.run(f"head -c {size} /dev/zero | nc 10.0.2.2 {name}", timeout=60, check=True)
        reader.join(10)

        def write():
            with source.accept()[0] as link:
                link.sendall(bytes(size))

        threading.Thread(target=write).start()
        began = time.monotonic()
        name = source.getsockname()[1]
        assert say(machine, f"nc 10.0.2.2 {name} </dev/null | wc -c") == f"{size}\n"
        took.append(time.monotonic() - began)
        counted = machine.stats()["net"]["eth0"]
    assert counted["sent_bytes"] > size < counted["received_bytes"]
    # Two buckets of a second, and 15 parts of a hundred.
    for seconds in took:
        assert (size - rate) / (rate * 1.15) < seconds < 30


def test_another_network_while_it_runs(machine, port):
    from ringzero.config.devices.net import NetConfig

    get = f"timeout 10 wget -qO- http://10.0.2.2:{port}/f | sha256sum"
    assert machine.nets.connect(NetConfig("none"), 0) == 0
    assert SUM not in say(machine, get)
    assert machine.nets.connect(NetConfig("user")) == 0
    assert SUM in say(machine, get)


def test_a_cable_that_is_pulled_in_mid_transfer(machine):
    """What was on its way ends with an error once there is a network again; what is new works."""
    from ringzero.config.devices.net import NetConfig

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        url = f"http://10.0.2.2:{door.getsockname()[1]}/f"
        pull = machine.agent.run(["sh", "-c", f"wget -O /tmp/part {url} 2>/tmp/why"])
        link, _ = door.accept()
        with link:
            link.recv(4096)
            head = b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n"
            link.sendall(head + b"x" * 5000)
            say(machine, "until [ -s /tmp/part ]; do sleep 0.05; done")
            machine.nets.connect(NetConfig("none"), 0)
            link.settimeout(30)
            assert link.recv(1) == b"", "the host's side hears of it"
            assert machine.nets.connect(NetConfig("user")) == 0
            assert pull.wait(30) != 0
            assert "reset" in say(machine, "cat /tmp/why")


def test_connections_stay_the_originals(machine, tmp_path):
    """A copy's and a restored machine's own are reset; those of the original go on."""
    from ringzero.vm.saved.store import Store

    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        number = door.getsockname()[1]
        # What waits for input would never notice by itself.
        out = f"(nc 10.0.2.2 {number} <>/tmp/p1 >/tmp/got; echo over >/tmp/out) "
        in_ = "(nc -l -p 7777 <>/tmp/p2 >/tmp/heard; echo over >/tmp/in) "
        say(machine, f"mkfifo /tmp/p1 /tmp/p2; ({out} & {in_} &) >/dev/null 2>&1")
        link, _ = door.accept()
        (made,) = machine.nets.publish("0:7777")
        say(machine, "until netstat -lnt | grep -q :7777; do sleep 0.05; done")
        with link, socket.create_connection(("127.0.0.1", made.port), 10) as caller:
            caller.sendall(b"before\n")
            link.sendall(b"before\n")
            wait = "until [ -s /tmp/got ] && [ -s /tmp/heard ]; do sleep 0.05; done"
            say(machine, wait)
            (copy,) = machine.fork(start=True)
            over = "for n in $(seq 200); do [ -e /tmp/out ] && [ -e /tmp/in ] && exit; sleep 0.05; "
            over += "done; netstat -nt; ls /tmp; exit 1"
            with copy:
                assert say(copy, over) == ""
            store = Store(tmp_path / "snapshots")
            saved = machine.snapshot("one", store=store)
            with saved.restore() as restored:
                assert say(restored, over) == ""
            caller.sendall(b"after\n")
            link.sendall(b"after\n")
            wait = "until grep -q after /tmp/got && grep -q after /tmp/heard; do sleep 0.05; done"
            assert say(machine, wait + "; ls /tmp/in /tmp/out 2>/dev/null || true") == ""
    machine.nets.unpublish(str(made.port))


def test_several_pairs_of_queues(port):
    """Linux uses one for each vCPU; a copy and a machine taken back use them, too."""
    nets = ["user,queues=2"]
    with Machine(image="micro", memory="128M", cpus=2, engine="soft", nets=nets) as two:
        assert say(two, "ls /sys/class/net/eth0/queues").split() == ["rx-0", "rx-1", "tx-0", "tx-1"]
        get = f"wget -qO- http://10.0.2.2:{port}/f | sha256sum"
        both = f"taskset 1 sh -c '{get}' & taskset 2 sh -c '{get}'; wait"

        def check(machine):
            assert say(machine, both).split()[::2] == [SUM, SUM]
            (backend,) = machine.nets
            used = [backend.interface.queues[n].save().next_used for n in range(4)]
            assert all(used), f"each of them is used: {used}"

        check(two)
        (copy,) = two.fork(start=True)
        with copy:
            check(copy)
        check(two)
