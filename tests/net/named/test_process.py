"""A network's process and its machines' ends, without guests: joining, leases, ports, frames."""

import contextlib
import os
import resource
import signal
import socket
import struct
import threading
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.config.ports import Forward
from ringzero.core.frames import Frame
from ringzero.errors import ConfigError, ConflictError, HostError, NotFoundError
from ringzero.net.named import client, directory
from ringzero.net.named.client import NamedEnd
from ringzero.net.named.description import NamedNetwork
from ringzero.net.named.process import Server
from ringzero.net.named.wire import Decoder, object_message
from ringzero.records import replace


class Port:
    """A machine's interface that keeps what it gets."""

    def __init__(self):
        self.waiting, self.got, self.up = [], [], None

    def fetch(self, handle, limit, *, coalesce=False):
        while self.waiting:
            handle(Frame(self.waiting.pop(0)))
        return False

    def deliver(self, frames):
        self.got += [frame.data() for frame in frames]
        return len(frames)

    def set_link(self, up):
        self.up = up


@pytest.fixture
def lan(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path))
    place, _ = directory.create(
        NamedNetwork("lan", subnet="10.78.0.0/24", fixed={mac(7): "10.78.0.77"})
    )
    yield place
    for pid in pids(place):
        os.kill(pid, signal.SIGTERM)
    until(lambda: not place.alive)


def mac(number):
    return f"02:00:00:00:00:{number:02x}"


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def ask(place, data):
    """Send bytes to the process, and return the first answer, or what ended it."""
    link = place.try_connect()
    if link is None:
        return None
    with link:
        link.settimeout(10)
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        decoder = Decoder()
        while True:
            try:
                got = link.recv(65536)
            except ConnectionResetError:
                return b""
            found = decoder.feed(got)
            if found or not got:
                return found[0] if found else b""


@pytest.fixture
def join(lan):
    ends = []

    def join(number, name, **fields):
        end = NamedEnd(NetConfig("lan", mac=mac(number), hostname=name, **fields))
        end.port = Port()
        end.start()
        ends.append(end)
        until(lambda: end.port.up)
        return end

    def leave(end):
        ends.remove(end)
        end.close()

    join.leave = leave
    yield join
    for end in ends:
        end.close()


def test_a_copy_hears_of_the_ends_of_connections_before_it_runs(lan):
    packed = bytes((10, 78, 0, 2, 10, 78, 0, 1)) + struct.pack(">HHII", 40000, 80, 1, 1)
    end = NamedEnd(NetConfig("lan", mac=mac(1), hostname="one"))
    try:
        end.port = Port()
        end.inherit((packed,), bytes(6))
        end.start()
        assert [frame[-20 + 13] & 4 for frame in end.port.got if frame[23] == 6] == [4, 4]
        assert end.port.up
    finally:
        end.close()


def arp(number, address, target):
    head = b"\xff" * 6 + bytes.fromhex(mac(number).replace(":", "")) + b"\x08\x06"
    body = b"\0\1\x08\0\6\4\0\1" + head[6:12] + socket.inet_aton(address) + bytes(6)
    return head + body + socket.inet_aton(target)


def test_machines_join_and_leave(lan, join):
    one, two = join(1, "one"), join(2, "two")
    fixed = join(7, "seven")
    assert (one.address, two.address, fixed.address) == ("10.78.0.3", "10.78.0.4", "10.78.0.77")
    assert [m["name"] for m in client.inspect(lan)["machines"]] == ["one", "two", "seven"]
    join.leave(two)
    until(lambda: len(client.inspect(lan)["machines"]) == 2)
    # It has its name still, and so the address.
    assert join(9, "two").address == "10.78.0.4"
    with pytest.raises(ConflictError, match="has the MAC address"):
        NamedEnd(NetConfig("lan", mac=mac(1), hostname="other"))


def test_fixed_addresses_change_while_machines_are_there(lan, join):
    one = join(1, "one")
    fixed = {mac(1): "10.78.0.91", mac(2): "10.78.0.92"}
    client.change(lan, replace(lan.network(), fixed=fixed))
    assert join(2, "two").address == "10.78.0.92"
    # Who is there keeps what it has.
    (first, _) = client.inspect(lan)["machines"]
    assert first["address"] == one.address != "10.78.0.91"


def test_a_static_address_is_its_that_had_it_first(lan, join):
    one, two = join(1, "one"), join(2, "two")

    def refused(number, address):
        machine = (one, two)[number - 1]
        before = client.inspect(lan)["machines"][number - 1]
        machine.port.waiting.append(arp(number, address, "10.78.0.99"))
        machine.wake()
        until(lambda: _heard(client.inspect(lan)["machines"][number - 1]) > _heard(before))
        return client.inspect(lan)["machines"][number - 1]["refused"] - before["refused"]

    # Seven's is fixed, and it is not there.
    for address in ("10.78.0.77", "10.78.0.0", "10.78.0.255", "10.78.0.1", "10.79.0.9"):
        assert refused(1, address) == 1
    # The next that DHCP would give.
    assert refused(1, "10.78.0.5") == 0
    assert refused(2, "10.78.0.5") == 1
    assert refused(1, "10.78.0.5") == 0
    assert join(3, "three").address == "10.78.0.6"
    join.leave(one)
    until(lambda: len(client.inspect(lan)["machines"]) == 2)
    two.port.waiting.append(arp(2, "10.78.0.5", "10.78.0.99"))
    two.wake()
    until(lambda: client.inspect(lan)["machines"][0]["sent"] >= 1)
    assert client.inspect(lan)["machines"][0]["refused"] == 1
    # One that is another's by name from now on is nobody else's.
    client.change(lan, replace(lan.network(), fixed={mac(4): "10.78.0.5"}))
    assert join(4, "four").address == "10.78.0.5"
    two.port.waiting.append(arp(2, "10.78.0.5", "10.78.0.99"))
    two.wake()
    until(lambda: client.inspect(lan)["machines"][0]["refused"] == 2)


def test_an_address_that_has_become_another_machines_is_nobodys_lease(lan, join):
    one = join(1, "one")
    assert one.address == "10.78.0.3"
    client.change(lan, replace(lan.network(), fixed={mac(2): "10.78.0.3"}))
    # Who has it runs with it.
    with pytest.raises(ConflictError, match="is that of a machine that runs"):
        NamedEnd(NetConfig("lan", mac=mac(2), hostname="two"))
    join.leave(one)
    until(lambda: not lan.alive or not client.inspect(lan)["machines"])
    assert join(1, "one").address != "10.78.0.3"
    assert join(2, "two").address == "10.78.0.3"


def _heard(machine):
    return machine["sent"] + machine["refused"]


def test_frames_go_to_whom_they_are_meant_for(lan, join):
    one, two = join(1, "one"), join(2, "two")
    frame = arp(1, one.address, two.address)
    one.port.waiting.append(frame)
    one.wake()
    until(lambda: frame in two.port.got)
    # Of what is not its own a machine says nothing.
    one.port.waiting += [arp(1, two.address, "10.78.0.1"), arp(3, one.address, "10.78.0.1")]
    one.wake()
    until(lambda: client.inspect(lan)["machines"][0]["refused"] == 2)
    # The router answers.
    one.port.waiting.append(arp(1, one.address, "10.78.0.1"))
    one.wake()
    until(lambda: any(data[20:22] == b"\0\2" for data in one.port.got))


def test_ports(lan, join):
    one, two = join(1, "one", ports=(Forward(0, 80),)), join(2, "two")
    (made,) = one.forwards()
    assert made.port and made.guest == ""
    with pytest.raises(ConflictError, match="is taken"):
        two.forward(Forward(made.port, 80))
    with pytest.raises(ConflictError):
        NamedEnd(NetConfig("lan", mac=mac(3), hostname="x", ports=(Forward(made.port, 1),)))
    assert len(client.inspect(lan)["machines"]) == 2
    one.unforward(made)
    assert one.forwards() == []
    with pytest.raises(NotFoundError):
        one.unforward(made)
    again = two.forward(Forward(made.port, 81, protocol="udp"))
    assert again.port == made.port


def test_ports_before_the_machine_begins_and_answers_that_come_too_late(lan, join, monkeypatch):
    end = NamedEnd(NetConfig("lan", mac=mac(1), hostname="one"))
    made = end.forward(Forward(0, 80))
    end.unforward(made)
    with pytest.raises(NotFoundError):
        end.unforward(made)
    made = end.forward(Forward(0, 81))
    end.close()
    two = join(2, "two")
    monkeypatch.setattr(client, "_PATIENCE", 0.2)
    (pid,) = pids(lan)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostError, match="does not answer"):
            two.forward(made)
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(lan.path.parent))
    # What was told to be not there is not.
    until(lambda: client.inspect(lan)["machines"][0]["ports"] == [])
    assert two.forwards() == []
    assert two.forward(made) == made


def test_what_is_not_ones_own_stays(lan, join):
    one, two = join(1, "one", ports=(Forward(0, 80),)), join(2, "two")
    with pytest.raises(NotFoundError):
        two.unforward(one.forwards()[0])
    assert len(client.inspect(lan)["machines"][0]["ports"]) == 1


def test_a_fault_of_the_processes_own_ends_one_connection_or_makes_another_process(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path))
    place, _ = directory.create(NamedNetwork("in", subnet="10.77.0.0/24"))
    server = Server(place, place.network())
    server.start()
    try:

        def broken(*_):
            raise ZeroDivisionError

        with pytest.MonkeyPatch.context() as patch, pytest.warns(RuntimeWarning, match="ZeroDiv"):
            patch.setattr(server, "answer", broken)
            with place.try_connect() as link:
                link.sendall(object_message({"id": 1}))
                link.settimeout(10)
                assert link.recv(1) == b""
        assert server.network.counters()["faults"] == 1 and not server.ended.is_set()
        server.network.loop.call(broken)
        assert server.ended.wait(10)
    finally:
        server.close()
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_process_that_is_killed_is_another_soon(lan, join):
    one, two = join(1, "one", ports=(Forward(0, 80),)), join(2, "two")
    before = one.forwards(), one.address, two.address
    for pid in pids(lan):
        os.kill(pid, signal.SIGKILL)
    until(lambda: one.port.up is False or not lan.alive)
    until(lambda: len(client.inspect(lan)["machines"]) == 2)
    until(lambda: one.port.up and two.port.up)
    assert (one.forwards(), one.address, two.address) == before
    one.port.waiting.append(frame := arp(1, one.address, two.address))
    one.wake()
    until(lambda: frame in two.port.got)


def send(processes, number):
    """Send a signal to each process; return those that are there."""
    found = []
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            found.append(pid)
    return found


@contextlib.contextmanager
def dying(place):
    """A network's process that hears what comes, does not answer, and is killed then."""
    until(lambda: pids(place))
    # Of several that were started at once one stays, and which is not known yet.
    found = send(pids(place), signal.SIGSTOP)
    killer = threading.Timer(0.3, send, (found, signal.SIGKILL))
    killer.start()
    try:
        yield
    finally:
        killer.join()


def test_who_joins_a_process_that_is_killed_joins_the_next(lan, join):
    join(1, "one")
    with dying(lan):
        end = NamedEnd(NetConfig("lan", mac=mac(2), hostname="two"))
    with dying(lan):
        made = end.forward(Forward(0, 80))
    assert made.port and end.forwards() == [made]
    until(lambda: len(client.inspect(lan)["machines"]) == 2)
    end.leave()


def test_what_a_process_that_is_killed_was_asked_the_next_one_does(lan, join):
    one = join(1, "one")
    for _ in range(3):
        with dying(lan):
            made = one.forward(Forward(0, 80))
        assert made.port and one.forwards() == [made]
        # There may have been one process more in between.
        until(lambda: client.inspect(lan)["machines"])
        (machine,) = client.inspect(lan)["machines"]
        assert len(machine["ports"]) == 1
        with dying(lan):
            one.unforward(made)
        until(lambda: client.inspect(lan)["machines"])
        (machine,) = client.inspect(lan)["machines"]
        assert not machine["ports"] and not one.forwards()


def test_a_port_that_somebody_takes_while_there_is_no_process(lan, join, capfd):
    one = join(1, "one", ports=(Forward(0, 80), Forward(0, 81)))
    first, second = one.forwards()
    (pid,) = pids(lan)
    # It holds the port until it is gone, and others who want it are not told when that is.
    os.kill(pid, signal.SIGKILL)
    thief = take(first)
    with thief:
        until(lambda: one.port.up is False)
        until(lambda: one.port.up)
        assert one.forwards() == [second], "the machine is there, and so are its other ports"
        assert f"{first} is taken" in capfd.readouterr().err
        one.unforward(second)
        time.sleep(2.5 * client._PORT_RETRY)
        assert one.forwards() == []
    until(lambda: one.forwards() == [first])
    assert f"{first} is forwarded again" in capfd.readouterr().err
    one.unforward(first)


def take(forward):
    """Listen where a port was forwarded, as soon as one can."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_server((forward.address, forward.port))
        except OSError:
            assert time.monotonic() < deadline


def test_out_of_descriptors_while_the_process_is_another(lan, join):
    one = join(1, "one")
    (pid,) = pids(lan)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # What is open stays so; nothing else can be.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        os.kill(pid, signal.SIGKILL)
        until(lambda: one.port.up is False)
        time.sleep(0.5)
        assert one.port.up is False and one._loop._thread.is_alive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: one.port.up)


def pids(place):
    """Return who is the process of a network."""
    entries = [entry for entry in os.listdir("/proc") if entry.isdecimal()]
    return [int(entry) for entry in entries if os.fsencode(place.path) in _words(entry)]


def _words(entry):
    try:
        with open(f"/proc/{entry}/cmdline", "rb") as file:  # noqa: PTH123
            return file.read().split(b"\0")
    except OSError:
        return []


@pytest.mark.parametrize(
    "message",
    [
        {"join": {}},
        {"join": {"name": "x/y", "mac": mac(1)}},
        {"join": {"name": "x", "mac": "01:00:00:00:00:00"}},
        {"join": {"name": "x", "mac": 7}},
        {"join": {"name": "x", "mac": mac(1), "ports": [3]}},
        {"join": 3},
        {"forward": {"port": "x"}},
        {"unforward": None},
        {"what": 1},
        {},
    ],
)
def test_requests_that_make_no_sense(lan, join, message):
    join(5, "five")
    answer = ask(lan, object_message({"id": 3, **message}))
    assert answer["id"] == 3 and "error" in answer
    assert len(client.inspect(lan)["machines"]) == 1


def test_bytes_that_make_no_sense_end_the_conversation(lan, join):
    join(5, "five")
    assert ask(lan, b"\xff" * 20) == b""
    assert len(client.inspect(lan)["machines"]) == 1


def test_a_network_is_removed_when_nobody_is_on_it(lan, join):
    one = join(1, "one")
    with pytest.raises(ConflictError, match="machines are on"):
        client.remove(lan)
    assert lan.alive
    join.leave(one)
    until(lambda: not client.inspect(lan)["machines"])
    client.remove(lan)
    assert not lan.path.exists()


@pytest.mark.parametrize("fields", [{"target": "x"}, {"listen": True}, {"host": False}])
def test_what_is_not_for_networks_by_name(lan, fields):
    with pytest.raises(ConfigError):
        NamedEnd(NetConfig("lan", mac=mac(1), **fields))
