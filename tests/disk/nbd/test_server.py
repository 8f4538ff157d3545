"""The NBD server: everything of the protocol that it speaks, and clients that do not."""

import contextlib
import random
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.disk import create_disk, open_disk
from ringzero.disk.instant import LiveDisk
from ringzero.disk.jobs.mirror import Mirror
from ringzero.disk.nbd import server as serving
from ringzero.disk.nbd.handshake import Handshake, Offer
from ringzero.disk.nbd.server import Export, Server
from ringzero.errors import ConflictError, DiskError, HostError, NotFoundError
from tests.disk.nbd.client import ACK, ERROR, Client

SIZE = 8 << 20
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE = 1, 2, 4, 8
EPERM, EIO, EINVAL, ENOSPC = 1, 5, 22, 28
UNSUP, INVALID, UNKNOWN, TOO_BIG = (ERROR + n for n in (1, 3, 6, 9))


@pytest.fixture
def live(tmp_path):
    create_disk(tmp_path / "disk", "qcow2", SIZE)
    disk = LiveDisk(open_disk(tmp_path / "disk"))
    yield disk
    disk.close()


@pytest.fixture
def server(live, tmp_path):
    found = Server()
    found.add(Export("one", live, description="the first"))
    found.listen_unix(tmp_path / "socket")
    yield found
    found.close()


@pytest.fixture
def address(server, tmp_path):
    return str(tmp_path / "socket")


def text(value):
    return struct.pack(">I", len(value)) + value


# ---- the handshake -----------------------------------------------------------


def test_export_name_with_and_without_zeroes(address):
    for flags, length in ((3, 10), (1, 134)):
        with Client(address, flags) as client:
            client.ask(1, b"one")
            answer = client.take(length)
            assert struct.unpack(">QH", answer[:10])[0] == SIZE
            assert answer[10:] == bytes(length - 10)
            assert client.read(0, 512) == bytes(512)


def test_an_export_that_is_not_there(address):
    with Client(address) as client:
        assert client.option(7, text(b"two") + b"\0\0")[0][0] == UNKNOWN
        client.go("one")
    with Client(address) as client:
        client.ask(1, b"two")
        assert client.ended()


def test_the_default_export_is_the_only_one(server, address, live):
    with Client(address) as client:
        assert client.go("")[0] == SIZE
    server.add(Export("two", live, read_only=True))
    with Client(address) as client:
        assert client.option(7, text(b"") + b"\0\0")[0][0] == UNKNOWN


def test_list_and_info(server, address, live):
    server.add(Export("two", live, read_only=True))
    with Client(address) as client:
        assert client.option(3) == [
            (2, text(b"one") + b"the first"), (2, text(b"two")), (ACK, b""),
        ]  # fmt: skip
        assert client.option(3, b"x")[0][0] == INVALID
        wanted = struct.pack(">HHHHH", 4, 1, 2, 3, 99)
        found = client.option(6, text(b"one") + wanted)
        kinds = {data[:2]: data[2:] for kind, data in found if kind == 3}
        assert kinds[b"\0\1"] == b"one"
        assert kinds[b"\0\2"] == b"the first"
        assert struct.unpack(">III", kinds[b"\0\3"]) == (1, 4096, 32 << 20)
        # To be told of is not to be chosen.
        _, flags = client.go("two")
        assert flags & 2
        client.request(WRITE, 0, 4, payload=b"data")
        assert client.simple() == (EPERM, b"")
        client.request(ZEROES, 0, 4)
        assert client.simple() == (EPERM, b"")


def test_options_that_make_no_sense(address):
    with Client(address) as client:
        assert client.option(5)[0][0] == UNSUP
        assert client.option(4711, b"data")[0][0] == UNSUP
        for body in (b"", b"\0\0", text(b"one"), text(b"one") + b"\0\1", b"\xff" * 6):
            assert client.option(7, body)[0][0] == INVALID
        assert client.option(7, text(b"\xff") + b"\0\0")[0][0] == INVALID
        assert client.option(7, text(b"x" * 4097) + b"\0\0")[0][0] == TOO_BIG
        assert client.option(6, b"x" * 65537)[0][0] == TOO_BIG
        assert client.option(10, text(b"one") + bytes(4))[0][0] == INVALID
        assert client.option(2) == [(ACK, b"")]
        assert client.ended()


@pytest.mark.parametrize(
    "said",
    [b"\0\0\0\7", b"\0\0\0\3" + b"GARBAGE!" * 2, b"\0\0\0\3IHAVEOPT\0\0\0\7\x7f\xff\xff\xff"],
)
def test_who_does_not_speak_it_is_left(address, said):
    with Client(address, None) as client:
        client.link.sendall(said)
        assert client.ended()


def test_meta_contexts(address):
    with Client(address) as client:
        client.option(8)
        assert client.option(8, b"x")[0][0] == INVALID
        for queries, found in (
            ([], 1), ([b"base:"], 1), ([b"base:allocation"], 1), ([b"qemu:dirty-bitmap:x"], 0),
        ):  # fmt: skip
            body = text(b"one") + struct.pack(">I", len(queries)) + b"".join(map(text, queries))
            listed = client.option(9, body)
            assert [data[4:] for kind, data in listed if kind == 4] == [b"base:allocation"] * found
        assert client.option(9, text(b"two") + bytes(4))[0][0] == UNKNOWN
        assert client.option(10, text(b"one") + struct.pack(">I", 9))[0][0] == INVALID
        # None was chosen.
        client.go("one")
        client.request(STATUS, 0, 512)
        assert client.chunks()[0][0] == 0x8001


# ---- transmission ------------------------------------------------------------


def test_what_is_written_is_read(address, live):
    data = random.Random(1).randbytes(3 << 20)
    with Client(address) as client:
        client.go("one")
        client.request(WRITE, 512, len(data), payload=data, flags=FUA)
        assert client.simple() == (0, b"")
        assert client.read(512, len(data)) == data
        client.request(TRIM, 1 << 20, 1 << 20)
        assert client.simple() == (0, b"")
        client.request(ZEROES, 513, 3, flags=NO_HOLE)
        assert client.simple() == (0, b"")
        client.request(FLUSH)
        assert client.simple() == (0, b"")
        client.request(CACHE, 0, SIZE)
        assert client.simple() == (0, b"")
        assert client.read(512, 5) == data[:1] + bytes(3) + data[4:5]
        for kind in (READ, WRITE, TRIM, ZEROES, CACHE):
            client.request(kind, 0, 0)
            assert client.simple() == (0, b"")
        client.request(DISC)
        assert client.ended()
    assert live.disk.read(2 << 20, 512) == data[(2 << 20) - 512 : 2 << 20]


def test_structured_reads(address, live):
    data = random.Random(2).randbytes(1 << 20)
    live.write(1 << 20, data)
    with Client(address) as client:
        client.go("one", structured=True)
        client.request(READ, 0, 3 << 20)
        found = client.chunks()
        assert [kind for kind, _ in found] == [2, 1, 2]
        assert found[0][1] == struct.pack(">QI", 0, 1 << 20)
        assert found[1][1] == struct.pack(">Q", 1 << 20) + data
        client.request(READ, 0, 3 << 20, flags=DF)
        ((kind, payload),) = client.chunks()
        assert kind == 1
        assert payload == bytes(8 + (1 << 20)) + data + bytes(1 << 20)
        client.request(READ, 5, 0)
        assert client.chunks() == [(0, b"")]


def test_block_status(address, live):
    live.write(1 << 20, b"x" * 65536)
    with Client(address) as client:
        client.go("one", structured=True, allocation=True)
        client.request(STATUS, 4096, SIZE - 4096)
        ((kind, payload),) = client.chunks()
        assert kind == 5
        assert payload[:4] == b"\0\0\0\1"
        entries = list(struct.iter_unpack(">II", payload[4:]))
        assert entries == [((1 << 20) - 4096, 3), (65536, 0), (SIZE - (1 << 20) - 65536, 3)]
        client.request(STATUS, 1 << 20, SIZE - (1 << 20), flags=REQ_ONE)
        assert client.chunks() == [(5, struct.pack(">III", 1, 65536, 0))]
        client.request(STATUS, 0, 0)
        assert client.chunks()[0][1][:4] == struct.pack(">I", EINVAL)


@pytest.mark.parametrize(
    ("kind", "offset", "length", "flags", "error"),
    [
        (READ, SIZE, 1, 0, EINVAL),
        (READ, 0, (32 << 20) + 1, 0, EINVAL),
        (READ, (1 << 64) - 1, 2, 0, EINVAL),
        (READ, 0, 1, FUA, EINVAL),
        (TRIM, 0, SIZE + 1, 0, ENOSPC),
        (ZEROES, SIZE, 1, 0, ENOSPC),
        (STATUS, 0, 512, 0, EINVAL),
        (FLUSH, 0, 0, FUA, EINVAL),
        (99, 0, 0, 0, EINVAL),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_requests_that_are_refused(address, structured, kind, offset, length, flags, error):
    with Client(address) as client:
        client.go("one", structured=structured)
        client.request(kind, offset, length, flags=flags)
        if structured:
            ((found, payload),) = client.chunks()
            assert found == 0x8001
            assert struct.unpack(">I", payload[:4]) == (error,)
        else:
            assert client.simple() == (error, b"")
        # And the conversation goes on.
        client.request(WRITE, SIZE - 1, 2, payload=b"ab")
        client.chunks() if structured else client.simple()
        client.request(FLUSH)
        assert (client.chunks() if structured else client.simple()) is not None


def test_what_is_no_request_ends_it(address):
    for head in (b"\0" * 28, struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 1 << 31)):
        with Client(address) as client:
            client.go("one")
            client.link.sendall(head)
            assert client.ended()


def test_a_disk_that_fails(address, live, monkeypatch):
    def fail(offset, buffers):
        raise DiskError("/secret/place is gone")

    live.write(0, b"x" * (3 << 20))
    monkeypatch.setattr(live.disk, "write", fail)
    with Client(address) as client:
        client.go("one", structured=True)
        client.request(WRITE, 0, 2 << 20, payload=bytes(2 << 20))
        ((kind, payload),) = client.chunks()
        assert (kind, payload[:4]) == (0x8001, struct.pack(">I", EIO))
        assert b"secret" not in payload
        monkeypatch.setattr(live.disk, "read_into", fail)
        client.request(READ, 0, 512)
        assert client.chunks()[0][0] == 0x8001
    with Client(address) as client:
        client.go("one")
        client.request(READ, 0, 512)
        assert client.simple(512) == (EIO, b"")
        monkeypatch.undo()
        honest = live.disk.read_into
        monkeypatch.setattr(
            live.disk, "read_into", lambda at, b: fail(at, b) if at else honest(at, b)
        )
        # The head of the reply, which says that all is well, was sent.
        client.request(READ, 0, 3 << 20)
        with pytest.raises(EOFError):
            client.simple(3 << 20)


# ---- many, slow and half clients --------------------------------------------


def test_several_clients_see_one_disk(address):
    with Client(address) as one, Client(address) as two:
        one.go("one")
        two.go("one")
        one.request(WRITE, 0, 4, payload=b"data")
        one.simple()
        assert two.read(0, 4) == b"data"


def test_slow_and_half_clients_hold_up_nobody(address, live, server):
    silent = Client(address)
    half = Client(address)
    half.go("one")
    half.request(WRITE, 0, 1 << 20, payload=b"half")
    greedy = Client(address)
    greedy.go("one")
    for _ in range(8):
        # It never takes what it asks for.
        greedy.request(READ, 0, SIZE)
    with Client(address) as client:
        client.go("one")
        client.request(WRITE, 4096, 4, payload=b"data", flags=FUA)
        assert client.simple() == (0, b"")
        assert client.read(4096, 4) == b"data"
    begin = time.monotonic()
    server.close()
    assert time.monotonic() - begin < 20
    for one in (silent, half, greedy):
        one.link.close()


def test_no_more_clients_than_there_is_room_for(address, server, monkeypatch):
    monkeypatch.setattr(serving, "MOST_CLIENTS", 2)
    with Client(address), Client(address), pytest.raises((EOFError, ConnectionError)):
        Client(address)
    _until(lambda: not server.clients())
    with Client(address) as client:
        client.go("one")


def test_a_handshake_that_does_not_end(address, server, monkeypatch):
    monkeypatch.setattr(serving, "_HANDSHAKE", 0.2)
    with Client(address) as client:
        assert client.ended()
    _until(lambda: not server.clients())


def _until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_export_that_goes_takes_its_clients_along(server, address, live):
    server.add(Export("two", live))
    with Client(address) as one, Client(address) as two:
        one.go("one")
        two.go("two")
        server.remove("one")
        assert one.ended()
        assert two.read(0, 4) == bytes(4)
        assert server.clients() == server.clients("two") == 1
    with pytest.raises(NotFoundError):
        server.remove("one")
    with pytest.raises(ConflictError):
        server.add(Export("two", live))


def test_listening(server, live, tmp_path):
    port = server.listen_tcp("127.0.0.1", 0)
    with Client(("127.0.0.1", port)) as client:
        assert client.go("one")[0] == SIZE
    other = Server()
    with pytest.raises(HostError, match="listen"):
        other.listen_tcp("127.0.0.1", port)
    with pytest.raises(ConflictError):
        other.listen_unix(tmp_path / "socket")
    other.close()
    server.close()
    assert not (tmp_path / "socket").exists()


def test_a_disk_that_moves_under_its_clients(address, live, tmp_path):
    create_disk(tmp_path / "target", "qcow2", SIZE)
    with Client(address) as client:
        client.go("one")
        client.request(WRITE, 0, 4, payload=b"data")
        client.simple()
        job = Mirror(live, open_disk(tmp_path / "target"))
        job.start()
        assert job.wait_ready(30)
        client.request(WRITE, 4, 4, payload=b"more")
        client.simple()
        job.complete()
        assert job.wait(30)
        assert client.read(0, 8) == b"datamore"
        assert live.disk.path == tmp_path / "target"


# ---- bytes of all kinds ------------------------------------------------------

OPTIONS = st.builds(
    lambda number, body: b"IHAVEOPT" + struct.pack(">II", number, len(body)) + body,
    st.integers(0, 12),
    st.one_of(
        st.binary(max_size=40),
        st.builds(lambda name, rest: text(name) + rest, st.sampled_from([b"", b"one", b"zwei"]),
                  st.sampled_from([b"", b"\0\0", b"\0\1\0\3", bytes(4), b"\0\0\0\1\0\0\0\5base:"])),
    ),
)  # fmt: skip


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.one_of(OPTIONS, OPTIONS, st.binary(max_size=60)), max_size=8),
    st.integers(1, 40),
    st.sampled_from([b"\0\0\0\3", b"\0\0\0\1", b""]),
)
def test_fuzz_of_the_handshake(parts, step, flags):
    def talk(size):
        talk = Handshake(lambda: {"one": Offer("one", SIZE)})
        data, said = flags + b"".join(parts), b""
        for start in range(0, len(data), size):
            said += talk.feed(data[start : start + size])
        left = talk.rest if talk.chosen else b""
        return said, talk.over, talk.chosen, talk.structured, talk.allocation, left

    # However it comes in pieces, it means the same.
    assert talk(step) == talk(1 << 20)


def _odd_request(dice):
    head = struct.pack(
        ">IHHQQI",
        0x25609513 if dice.random() < 0.95 else dice.getrandbits(32),
        dice.choice([0, 0, 0, 1, 4, 8, 0xFFFF]),
        dice.choice([*range(9), dice.getrandbits(16)]),
        dice.getrandbits(64),
        dice.choice([0, 512, SIZE - 1, SIZE, 1 << 63, dice.randrange(SIZE)]),
        dice.choice([0, 1, 512, 4096, 1 << 16, 0xFFFFFFFF]),
    )
    return head + (dice.randbytes(dice.randrange(600)) if dice.random() < 0.3 else b"")


def test_fuzz_of_requests(address, live):
    dice = random.Random(3)
    live.write(0, dice.randbytes(1 << 20))
    for number in range(60):
        with Client(address, timeout=5) as client:
            client.go("one", structured=number % 2 == 0, allocation=number % 4 == 0)
            # It leaves who sends what is no request.
            with contextlib.suppress(ConnectionError):
                for _ in range(dice.randrange(1, 12)):
                    client.link.sendall(_odd_request(dice))
                client.link.shutdown(socket.SHUT_WR)
                while client.link.recv(1 << 16):
                    pass
    with Client(address) as client:
        assert client.go("one")[0] == SIZE
        client.request(READ, 0, 512)
        assert client.simple(512)[0] == 0


# ---- clients that others have written ----------------------------------------


def tool(*words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture
def filled(live, tmp_path):
    """What the disk holds, and a raw image of it."""
    dice = random.Random(4)
    model = bytearray(SIZE)
    for start in (0, 1 << 20, SIZE - 65536):
        data = dice.randbytes(65536)
        live.write(start, data)
        model[start : start + 65536] = data
    (tmp_path / "model").write_bytes(model)
    return tmp_path / "model"


def test_qemu_img(server, address, live, filled, tmp_path):
    url = f"nbd+unix:///one?socket={address}"
    assert "8 MiB" in tool("qemu-img", "info", url)
    tool("qemu-img", "compare", "-F", "raw", "-f", "raw", url, filled)
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url, tmp_path / "copy")
    tool("qemu-img", "compare", "-F", "raw", tmp_path / "copy", filled)
    assert '"zero": true' in tool("qemu-img", "map", "--output=json", url)
    port = server.listen_tcp("127.0.0.1", 0)
    fresh = random.Random(5).randbytes(SIZE // 2) + bytes(SIZE // 2)
    (tmp_path / "fresh").write_bytes(fresh)
    tool(
        "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw",
        tmp_path / "fresh", f"nbd://127.0.0.1:{port}/one",
    )  # fmt: skip
    assert live.disk.read(0, SIZE) == fresh


def test_qemu_io(address, live):
    url = f"nbd+unix:///one?socket={address}"
    tool(
        "qemu-io", "-f", "raw", "-c", "write -P 7 1M 3M", "-c", "write -z 2M 64k",
        "-c", "discard 3M 64k", "-c", "flush", "-c", "read -P 7 1M 1M", "-c", "read -P 0 2M 64k",
        url,
    )  # fmt: skip
    assert live.disk.read(1 << 20, 512) == b"\7" * 512


def test_libnbd(server, address, live, filled, tmp_path):
    url = f"nbd+unix:///one?socket={address}"
    info = tool("nbdinfo", url)
    assert "base:allocation" in info
    assert "can_multi_conn: true" in info
    assert "the first" in tool("nbdinfo", "--list", f"nbd+unix:///?socket={address}")
    assert "hole,zero" in tool("nbdinfo", "--map", url)
    tool("nbdcopy", url, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == filled.read_bytes()
    fresh = random.Random(6).randbytes(SIZE)
    (tmp_path / "fresh").write_bytes(fresh)
    tool("nbdcopy", "--flush", tmp_path / "fresh", url)
    assert live.disk.read(0, SIZE) == fresh


def test_writers_and_a_reader_at_once(address, live):
    """Four clients write to parts of their own, and each finds what it wrote."""
    faults = []

    def work(number):
        dice = random.Random(number)
        try:
            with Client(address) as client:
                client.go("one")
                base = number * (SIZE // 4)
                for _ in range(40):
                    at, data = base + dice.randrange(1 << 20), dice.randbytes(5000)
                    client.request(WRITE, at, len(data), payload=data)
                    assert client.simple() == (0, b"")
                    assert client.read(at, len(data)) == data
        except Exception as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
