"""Sockets between host and guest: the host's ends alone, then with a guest that has booted."""

import contextlib
import os
import socket
import threading
import time

import pytest

from ringzero.devices.virtio.kinds.vsock import (
    DATA,
    NO_RECEIVE,
    NO_SEND,
    REQUEST,
    RESPONSE,
    SHUTDOWN,
)
from ringzero.devices.virtio.kinds.vsock import RESET as RST
from ringzero.errors import (
    ConfigError,
    ConflictError,
    HostError,
    NotFoundError,
    TimeoutExpiredError,
)
from ringzero.vm.ends.vsock import VsockSockets
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine
from tests.devices.virtio.vsock_guest import Guest
from tests.vm.ends import vsock_programs

WAIT = 10


def until(condition):
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.002)
    return found


class Rig:
    """Sockets, a device between, and a guest by hand."""

    def __init__(self, path):
        self.path = path
        self.sockets = VsockSockets(path)
        self.guest = Guest(host=self.sockets)
        self.sockets.connect(self.guest.device)
        self.sockets.start()

    def client(self, text=b"CONNECT 22\n"):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(WAIT)
        link.connect(str(self.path))
        link.sendall(text)
        return link

    def packet(self):
        return until(self.guest.packets)[0]

    def stream(self):
        """A client, and the ports of its stream."""
        link = self.client()
        packet, _ = self.packet()
        ports = packet.host_port, packet.guest_port
        self.guest.send(RESPONSE, *ports)
        assert link.recv(100) == b"OK %d\n" % ports[1]
        return link, ports


@pytest.fixture
def rig(tmp_path):
    rig = Rig(tmp_path / "sock")
    yield rig
    rig.guest.device.close()
    rig.sockets.close()


def test_from_the_host(rig):
    link, ports = rig.stream()
    link.sendall(b"question")
    assert rig.packet()[1] == b"question"
    rig.guest.send(DATA, *ports, b"answer")
    assert link.recv(100) == b"answer"
    link.shutdown(socket.SHUT_WR)
    packet, _ = rig.packet()
    assert (packet.operation, packet.flags) == (SHUTDOWN, NO_SEND)
    rig.guest.send(DATA, *ports, b"last words")
    rig.guest.send(SHUTDOWN, *ports, flags=NO_SEND)
    assert link.recv(100) == b"last words" and link.recv(100) == b""
    link.close()
    assert rig.packet()[0].flags == NO_SEND | NO_RECEIVE
    rig.guest.send(RST, *ports)
    until(lambda: not rig.guest.device.connections and not rig.sockets._clients)


def test_data_right_behind_the_request(rig):
    link = rig.client(b"CONNECT 22\nand more")
    packet, _ = rig.packet()
    rig.guest.send(RESPONSE, packet.host_port, packet.guest_port)
    assert rig.packet()[1] == b"and more"
    link.close()


@pytest.mark.parametrize(
    "text",
    [b"connect 22\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 99999999999\n",
     b"CONNECT 4294967296\n", b"CONNECT -1\n", b"x" * 100, b"\n", b"\xff\n"],
)  # fmt: skip
def test_what_is_no_request(rig, text):
    with rig.client(text) as link, contextlib.suppress(ConnectionError):
        assert link.recv(10) == b""
    assert rig.guest.packets() == []


def test_requests_in_pieces_and_clients_that_leave(rig):
    link = rig.client(b"CONN")
    time.sleep(0.02)
    link.sendall(b"ECT 7\n")
    assert rig.packet()[0].host_port == 7
    link.close()
    assert rig.packet()[0].operation == RST
    rig.client(b"CONN").close()
    until(lambda: not rig.sockets._clients)


def test_the_guest_refuses(rig):
    link = rig.client()
    packet, _ = rig.packet()
    rig.guest.send(RST, packet.host_port, packet.guest_port)
    assert link.recv(10) == b""


def test_from_the_guest(rig):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{rig.path}_80")
        listener.listen()
        listener.settimeout(WAIT)
        rig.guest.send(REQUEST, 1234, 80)
        link, _ = listener.accept()
        assert rig.packet()[0].operation == RESPONSE
        rig.guest.send(DATA, 1234, 80, b"GET")
        assert link.recv(100) == b"GET"
        rig.guest.send(SHUTDOWN, 1234, 80, flags=NO_SEND | NO_RECEIVE)
        assert link.recv(100) == b""
    rig.guest.send(REQUEST, 1235, 80)
    assert rig.packet()[0].operation == RST, "nobody listens any more"
    rig.guest.send(REQUEST, 1235, 81)
    assert rig.packet()[0].operation == RST, "nobody ever did"


def test_what_the_guest_sent_arrives_after_its_end(rig):
    link, ports = rig.stream()
    for _ in range(6):
        rig.guest.send(DATA, *ports, bytes(32768))
    rig.guest.send(SHUTDOWN, *ports, flags=NO_SEND | NO_RECEIVE)
    count = 0
    while data := link.recv(65536):
        count += len(data)
    assert count == 6 * 32768


def test_a_reader_that_does_not_read_holds_the_guest(rig):
    """The guest has credit for what lies in the socket and for one buffer more, then no more."""
    link, ports = rig.stream()
    for _ in range(64):
        for packet, _ in rig.guest.send(DATA, *ports, bytes(32768)):
            if packet.operation == RST:
                break
        time.sleep(0.001)
    assert not rig.guest.device.connections, "a guest that sends without credit is cut off"
    link.close()


def test_a_guest_that_does_not_read_holds_the_writer(rig):
    link = rig.client()
    packet, _ = rig.packet()
    rig.guest.send(RESPONSE, packet.host_port, packet.guest_port, buffer=100)
    assert link.recv(100).startswith(b"OK")
    link.settimeout(0.2)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            sent += link.send(bytes(65536))
    assert sent < 4 << 20
    link.close()


def test_a_flood_of_requests_fills_no_memory(rig):
    rig.guest.driver.transport.pause()
    rig.guest.driver.transport.resume()
    for port in range(2000):
        rig.guest.send(REQUEST, port, 80)
        rig.guest.send(RST, port, 80)
    assert len(rig.sockets._noted) <= 2 and not rig.guest.device.connections


def test_a_path_that_is_taken(tmp_path, rig):
    with pytest.raises(ConflictError, match="listens on"):
        VsockSockets(rig.path)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(HostError, match="no socket"):
        VsockSockets(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(HostError):
        VsockSockets(tmp_path / "no" / "directory")
    with pytest.raises(HostError, match="107"):
        VsockSockets(tmp_path / ("x" * 108))


def test_a_dead_socket_is_no_obstacle(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    sockets = VsockSockets(tmp_path / "s")
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    sockets.close()
    assert not (tmp_path / "s").exists()


def test_a_forked_process_lets_go(rig):
    """Or a client would not see the end of a stream as long as a copy lives."""
    link, ports = rig.stream()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        rig.sockets.leave()
        os.write(writing, b"x")
        time.sleep(WAIT)
        os._exit(0)
    try:
        assert os.read(reading, 1) == b"x"
        rig.guest.send(DATA, *ports, b"still here")
        assert link.recv(100) == b"still here"
        rig.guest.send(RST, *ports)
        assert link.recv(100) == b""
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_descriptions():
    with pytest.raises(ConfigError, match="CID of 2 is outside"):
        Machine(vsock="/tmp/x,cid=2")
    with pytest.raises(ConfigError, match="no socket device"):
        Machine(vsock=",cid=9")


# ---- in a guest ------------------------------------------------------------

boot = [pytest.mark.boot, pytest.mark.engine]
ECHO, BULK, NOBODY, SERVICE = 5, 6, 7, 1000


def output(machine, command):
    result = machine.run(command, timeout=60)
    assert result.exit_code == 0, result
    return result.stdout


def dial(machine, port):
    """Connect to a port; its server begins again after each connection."""

    def attempt():
        with contextlib.suppress(NotFoundError):
            return machine.vsock.dial(port)

    link = until(attempt)
    link.settimeout(WAIT)
    return link


def echo(link, data):
    link.sendall(data)
    got = b""
    while len(got) < len(data):
        got += link.recv(65536)
    return got == data


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    path = tmp_path_factory.mktemp("vsock") / "s"
    try:
        machine = Machine(image="micro", memory="128M", engine="soft", vsock=path)
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with machine:
        programs = {
            "cid": vsock_programs.local_cid(),
            "echo": vsock_programs.serve(ECHO, "cat"),
            "bulk": vsock_programs.serve(BULK, "cat"),
            "dial": vsock_programs.dial(SERVICE, "echo I am $(hostname); cat >/tmp/said"),
        }
        for name, program in programs.items():
            command = f"cat >/tmp/{name}; chmod +x /tmp/{name}"
            assert machine.run(command, input=program, timeout=120).exit_code == 0
        for name in ("echo", "bulk"):
            loop = f"while :; do /tmp/{name} || sleep 0.05; done"
            output(machine, f"({loop}) >/dev/null 2>&1 </dev/null &")
        output(machine, "dmesg -c >/dev/null")
        yield machine
        assert b"vsock" not in output(machine, "dmesg").lower()


def cid(machine):
    return int.from_bytes(output(machine, "/tmp/cid"), "little")


@pytest.mark.boot
@pytest.mark.engine
class TestGuest:
    def test_echo(self, parent):
        assert cid(parent) == parent.config.vsock.cid
        with dial(parent, ECHO) as link:
            assert echo(link, b"hello") and echo(link, os.urandom(100_000))
        with pytest.raises(NotFoundError):
            parent.vsock.dial(NOBODY)

    def test_much_at_once_both_ways(self, parent):
        data = os.urandom(4 << 20)
        with dial(parent, BULK) as link:

            def send():
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            got = bytearray()
            while piece := link.recv(65536):
                got += piece
            sender.join()
        assert got == data

    def test_the_guest_dials(self, parent):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{parent.vsock.path}_{SERVICE}")
            listener.listen()
            listener.settimeout(WAIT)
            output(parent, "/tmp/dial >/dev/null 2>&1 </dev/null & true")
            link, _ = listener.accept()
            with link:
                assert link.recv(100) == b"I am micro\n"
                link.sendall(b"hello, micro")
        until(lambda: output(parent, "cat /tmp/said") == b"hello, micro")

    def test_forks_have_addresses_and_sockets_of_their_own(self, parent):
        with dial(parent, ECHO) as link:
            assert echo(link, b"before")
            children = parent.fork(2, start=True)
            try:
                machines = [parent, *children]
                assert echo(link, b"the parent's stream goes on")
                seen = [cid(machine) for machine in machines]
                assert seen == [machine.config.vsock.cid for machine in machines]
                assert len(set(seen)) == 3 and min(seen) > 2
                assert len({machine.vsock.path for machine in machines}) == 3
                for child in children:
                    assert child.vsock.path.name == f"s.{child.config.vsock.cid}"
                    with dial(child, ECHO) as own:
                        assert echo(own, b"a new one")
                    assert b"vsock" not in output(child, "dmesg").lower()
                assert echo(link, b"and on")
            finally:
                for child in children:
                    child.stop()
        assert not any(child.vsock.path.exists() for child in children)

    def test_a_clone_that_is_dialled_at_once(self, parent):
        """The guest may not yet know its new address; the host's wish waits for it."""
        for _ in range(5):
            with dial(parent, BULK) as link:
                assert echo(link, b"x")
                (child,) = parent.fork(start=True)
                with child, dial(child, ECHO) as own:
                    assert echo(own, os.urandom(5000))

    def test_streams_of_the_original_end_in_a_clone(self, parent):
        """The server in the clone sees the end of it, and serves the next."""
        with dial(parent, ECHO) as link:
            assert echo(link, b"x")
            (child,) = parent.fork(start=True)
            with child, dial(child, ECHO) as own:
                assert echo(own, b"the server was in the middle of that stream")
            assert echo(link, b"not the parent's")

    def test_names_and_paths(self, parent, tmp_path):
        with parent.seed() as seed:
            with Machine.from_seed(seed, Identity("web-1", cid=4444)) as named:
                assert named.vsock.path.name == "s.web-1"
                assert cid(named) == 4444
                (grandchild,) = named.fork()
                with grandchild:
                    assert grandchild.vsock.path.name == f"s.{grandchild.config.vsock.cid}"
                with pytest.raises(ConflictError):
                    Machine.from_seed(seed, Identity("web-1"))
            with Machine.from_seed(seed, Identity(vsock=tmp_path / "mine")) as placed:
                assert placed.vsock.path == tmp_path / "mine"

    def test_a_state_put_back_into_the_same_machine(self, parent):
        (child,) = parent.fork(start=True)
        with child, dial(child, ECHO) as link:
            assert echo(link, b"x")
            with child.frozen():
                child.restore(child.save())
            assert link.recv(10) == b"", "streams are no part of a state"
            with dial(child, ECHO) as again:
                assert echo(again, b"the same address")
            assert cid(child) == child.config.vsock.cid

    def test_a_snapshot(self, parent, tmp_path):
        from ringzero.vm.saved.store import Store

        store = Store(tmp_path / "store")
        snapshot = parent.snapshot("vsock", store=store)
        with snapshot.start() as machine:
            assert cid(machine) == machine.config.vsock.cid != parent.config.vsock.cid
            with dial(machine, ECHO) as link:
                assert echo(link, b"from a snapshot")


def test_a_guest_without_a_driver_is_not_waited_for(tmp_path):
    with pytest.raises((NotFoundError, TimeoutExpiredError, HostError)):
        rig = Rig(tmp_path / "s")
        rig.guest.driver.write(0x70, 0)
        try:
            rig.sockets.dial(22, timeout=WAIT)
        finally:
            rig.sockets.close()
