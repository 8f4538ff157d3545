"""One connection of a client that is not well-behaved, with machines without guests."""

import asyncio
import select
import socket
import threading
import time

import pytest

from ringzero.control.host import client, notes
from ringzero.doors.contract import Address
from ringzero.doors.kinds.libvirt import Libvirt
from ringzero.doors.libvirt import connection, procedures, transient
from ringzero.doors.libvirt.faults import Error, ErrorCode
from ringzero.doors.libvirt.limits import PACKET, STREAM_DATA
from ringzero.doors.libvirt.values import DomainHandle, VolumeHandle
from ringzero.doors.libvirt.wire import Decoder, Hole, Packet, PacketStatus, PacketType
from ringzero.doors.manager import Manager
from tests.control.fake import start
from tests.doors.serving import Served

CONVERSE = Manager.converse
DOMAIN = """<domain type='qemu'><name>d1</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64'>hvm</type><kernel>/dev/null</kernel>{}</os></domain>"""


class Peer:
    """A client that says what it is told to, and reads when it is asked to."""

    def __init__(self, path, flags=0):
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(20)
        self.link.connect(str(path))
        self.decoder = Decoder(PACKET)
        self.waiting = []
        self.serial = 0
        self.ask("CONNECT_OPEN", name="ringzero:///session", flags=flags)

    def send(self, name, /, **arguments):
        """Send a call; return its packet."""
        procedure = procedures.remote().by_name[name]
        self.serial += 1
        packet = Packet(
            procedures.REMOTE_PROGRAM,
            procedures.VERSION,
            procedure.number,
            PacketType.CALL,
            self.serial,
            PacketStatus.OK,
            procedure.arguments.encode(arguments),
        )
        self.link.sendall(packet.encode())
        return packet

    def ask(self, name, /, **arguments):
        """Return the answer's results, or the Error that it is."""
        call = self.send(name, **arguments)
        packet = self.until(lambda p: p.type is PacketType.REPLY and p.serial == call.serial)
        if packet.status is PacketStatus.ERROR:
            return Error.decode(packet.body)
        return procedures.remote().by_name[name].results.decode(packet.body)

    def until(self, wanted):
        """Return the next packet of a kind; the rest is dropped. Raises EOFError."""
        while True:
            while self.waiting:
                packet = self.waiting.pop(0)
                if wanted(packet):
                    return packet
            data = self.link.recv(1 << 20)
            if not data:
                raise EOFError
            self.waiting += self.decoder.feed(data)

    def open(self, name, /, **arguments):
        """Open a stream; return the packet of the call."""
        call = self.send(name, **arguments)
        packet = self.until(lambda p: p.type is PacketType.REPLY and p.serial == call.serial)
        assert packet.status is PacketStatus.OK, Error.decode(packet.body)
        return call

    def write(self, call, data, status=PacketStatus.CONTINUE):
        self.link.sendall(call.in_stream(data, status).encode())

    def end_of(self, call):
        """Return the Error by which a stream ends, None where that is good."""
        packet = self.until(
            lambda p: p.type is PacketType.STREAM and p.status is not PacketStatus.CONTINUE
        )
        assert packet.serial == call.serial
        return Error.decode(packet.body) if packet.status is PacketStatus.ERROR else None

    def domain(self, name):
        return self.ask("DOMAIN_LOOKUP_BY_NAME", name=name)["domain"]

    def close(self):
        self.link.close()


@pytest.fixture
def path(fakes, root, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_STORAGE_DIR", str(tmp_path / "storage"))
    monkeypatch.setenv("RINGZERO_DATA_DIR", str(tmp_path / "data"))
    addresses = Libvirt.at(Address(tmp_path / "lv"))
    with Served(tmp_path / "serve", libvirt=addresses):
        yield tmp_path / "lv"


@pytest.fixture
def peer(path):
    made = Peer(path)
    yield made
    made.close()


def until(what):
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_who_asks_to_read_only_reads_only(path, peer):
    """As `virsh -r` does with a socket that gives more."""
    reader = Peer(path, flags=1)
    start("web")
    domain = reader.domain("web")
    for name in ("DOMAIN_DESTROY", "DOMAIN_SUSPEND", "DOMAIN_UNDEFINE"):
        assert reader.ask(name, domain=domain).code == ErrorCode.OPERATION_DENIED
    # It does not get more by asking again.
    reader.ask("CONNECT_OPEN", name=None, flags=0)
    assert reader.ask("DOMAIN_DESTROY", domain=domain).code == ErrorCode.OPERATION_DENIED
    reader.close()
    assert peer.ask("DOMAIN_SUSPEND", domain=domain) == {}


def test_numbers_that_would_fill_the_memory(peer):
    start("web")
    domain = peer.domain("web")
    for most, length in ((1, (1 << 31) - 1), ((1 << 31) - 1, (1 << 31) - 1), (1, 16 << 20)):
        answer = peer.ask("DOMAIN_GET_VCPUS", domain=domain, most=most, maplen=length)
        assert answer.code == ErrorCode.INVALID_ARG
    for most, length in ((0, (1 << 31) - 1), (-1, -1), (4, 1)):
        answer = peer.ask("DOMAIN_GET_VCPUS", domain=domain, most=most, maplen=length)
        assert len(answer["cpumaps"]) == (1 if most == 4 else 0)


def test_a_packet_of_a_stream_is_bounded_as_all_are(peer):
    start("web")
    call = peer.open("DOMAIN_OPEN_CONSOLE", domain=peer.domain("web"), dev_name=None, flags=0)
    # go-libvirt fills packets of 4 MiB.
    peer.write(call, bytes(4 * STREAM_DATA))
    assert peer.ask("DOMAIN_GET_STATE", domain=peer.domain("web"), flags=0)["state"] == 1
    peer.link.sendall((PACKET + 4).to_bytes(4, "big"))
    with pytest.raises((EOFError, ConnectionError)):
        peer.until(lambda packet: packet.type is PacketType.REPLY)


class Stuck:
    """In the place of a machine that takes nothing."""

    def __init__(self):
        self.conversations = []

    def __call__(self, manager, name, arguments, machine=None, *, caller):
        made = CONVERSE(manager, name, arguments, machine, caller=caller)

        async def send(data):
            self.conversations.append(made)
            while not made._closed:
                await asyncio.sleep(0.01)

        made.send = send
        return made


def test_a_machine_that_takes_nothing_holds_no_connection_up(peer, monkeypatch):
    monkeypatch.setattr(connection, "_STALLED", 0.3)
    stuck = Stuck()
    monkeypatch.setattr(Manager, "converse", lambda *a, **b: stuck(*a, **b))
    start("web")
    domain = peer.domain("web")
    call = peer.open("DOMAIN_OPEN_CONSOLE", domain=domain, dev_name=None, flags=0)
    for _ in range(40):
        peer.write(call, b"x")
    assert peer.end_of(call).code == ErrorCode.OPERATION_TIMEOUT
    assert peer.ask("DOMAIN_IS_ACTIVE", domain=domain) == {"active": 1}
    until(lambda: all(made._closed for made in stuck.conversations))


def test_a_stream_that_is_given_up_ends_at_once(peer, monkeypatch):
    stuck = Stuck()
    monkeypatch.setattr(Manager, "converse", lambda *a, **b: stuck(*a, **b))
    start("web")
    domain = peer.domain("web")
    error = Error(ErrorCode.OPERATION_ABORTED, 0, "no more").encode()
    # More than there may be at once.
    for _ in range(40):
        call = peer.open("DOMAIN_OPEN_CONSOLE", domain=domain, dev_name=None, flags=0)
        peer.write(call, b"x")
        peer.write(call, error, PacketStatus.ERROR)
        assert peer.ask("DOMAIN_IS_ACTIVE", domain=domain) == {"active": 1}
    until(lambda: all(made._closed for made in stuck.conversations))


def test_a_machine_that_ends_ends_its_consoles(peer):
    """And the same connection may open others, by the same numbers."""
    for _ in range(3):
        machine = start("web")
        call = peer.open("DOMAIN_OPEN_CONSOLE", domain=peer.domain("web"), dev_name=None, flags=0)
        client.RemoteMachine(machine).kill()
        peer.until(lambda p: p.type is PacketType.STREAM and p.status is not PacketStatus.OK)
        peer.write(call, b"x")
        assert peer.ask("CONNECT_NUM_OF_DOMAINS") == {"num": 0}
        client.RemoteMachine(machine).remove()
        peer.serial = 0


def test_one_who_reads_nothing_is_left(peer, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)
    volume = _volume(tmp_path, 64 << 20)
    peer.open("STORAGE_VOL_DOWNLOAD", volume=volume, offset=0, length=0, flags=0)
    poller = select.poll()
    # Nothing is read, and yet the other side is closed.
    poller.register(peer.link, 0)
    assert poller.poll(20_000)
    assert "Traceback" not in capfd.readouterr().err


def test_holes_that_no_file_can_have_are_refused(peer, tmp_path):
    volume = _volume(tmp_path, 4096)
    call = peer.open("STORAGE_VOL_UPLOAD", volume=volume, offset=512, length=0, flags=1)
    hole = call.in_stream(Hole((1 << 63) - 1).encode())
    peer.link.sendall(hole._replace(type=PacketType.STREAM_HOLE).encode())
    assert peer.end_of(call).code == ErrorCode.INVALID_ARG


def test_an_upload_whose_length_is_known_needs_no_end(peer, tmp_path):
    """vagrant-libvirt ends no stream, and makes an overlay of the volume at once."""
    volume = _volume(tmp_path, 4096)
    data = bytes(range(256)) * 4096
    call = peer.open("STORAGE_VOL_UPLOAD", volume=volume, offset=0, length=len(data), flags=0)
    for at in range(0, len(data), STREAM_DATA):
        peer.write(call, data[at : at + STREAM_DATA])
    # What comes next finds it written, and nobody in its way.
    found = peer.ask("STORAGE_VOL_GET_INFO", volume=volume)
    assert found["capacity"] == len(data)
    client.host().remove_volume("a.img")
    again = _volume(tmp_path, 4096)
    call = peer.open("STORAGE_VOL_UPLOAD", volume=again, offset=0, length=10, flags=0)
    peer.write(call, bytes(10))
    # An end that is said all the same is good, and a byte more is not.
    peer.write(call, b"", PacketStatus.OK)
    assert peer.end_of(call) is None
    call = peer.open("STORAGE_VOL_UPLOAD", volume=again, offset=0, length=10, flags=0)
    peer.write(call, bytes(11))
    assert peer.end_of(call).code == ErrorCode.INVALID_ARG


def _volume(tmp_path, size):
    made = client.host().create_volume("a.img", size, format="raw")
    return VolumeHandle("default", "a.img", made["path"])


def test_what_was_defined_outlives_a_life_for_which_it_was_created(peer):
    peer.ask("DOMAIN_DEFINE_XML", xml=DOMAIN.format(""))
    made = peer.ask("DOMAIN_CREATE_XML", xml=DOMAIN.format(""), flags=0)["domain"]
    assert peer.ask("DOMAIN_IS_PERSISTENT", domain=made) == {"persistent": 1}
    peer.ask("DOMAIN_DESTROY", domain=made)
    bad = DOMAIN.format("<cmdline>bad</cmdline>")
    assert "not a kernel" in peer.ask("DOMAIN_CREATE_XML", xml=bad, flags=0).message
    transient.sweep(client.host())
    assert [each["name"] for each in client.host().machines()] == ["d1"]
    # One that was not is gone.
    peer.ask("DOMAIN_UNDEFINE", domain=DomainHandle("d1", made.uuid))
    assert "not a kernel" in peer.ask("DOMAIN_CREATE_XML", xml=bad, flags=0).message
    until(lambda: client.host().machines() == [])


def test_what_is_to_stay_is_not_removed_meanwhile(peer):
    """The mark of a machine for one life is looked at under the lock of who changes it."""
    peer.ask("DOMAIN_DEFINE_XML", xml=DOMAIN.format(""))
    machine = client.machine("d1")
    machine.describe(metadata={transient.TRANSIENT: "yes"})
    with notes.changing(machine.directory.path):
        removing = threading.Thread(target=transient.remove, args=(client.host(), "d1"))
        removing.start()
        removing.join(0.2)
        assert removing.is_alive()
        # As `describe` does, which has the lock.
        record = notes.MetadataRecord()
        notes.save(record, machine.directory.path / notes.METADATA)
    removing.join(20)
    assert client.machine("d1").inspect()["status"] == "defined"
