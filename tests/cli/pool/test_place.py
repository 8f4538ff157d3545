import os
import socket

import pytest

from ringzero.cli.pool import client, place, protocol
from ringzero.config.machine import MachineConfig
from ringzero.records import replace


@pytest.fixture
def config(tmp_path):
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(b"x")
    return MachineConfig.create(
        kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd", agent=True, memory="256M"
    )


@pytest.fixture
def root(tmp_path, monkeypatch):
    path = tmp_path / "pools"
    monkeypatch.setenv("RINGZERO_POOL_DIR", str(path))
    return path


def listening(path, kind=socket.SOCK_SEQPACKET):
    found = socket.socket(socket.AF_UNIX, kind)
    found.bind(str(path))
    found.listen(1)
    return found


def test_a_pool_is_of_the_whole_description_and_its_files(config):
    key = place.key_of(config)
    assert key == place.key_of(replace(config))
    assert key != place.key_of(replace(config, memory=512 << 20))
    assert key != place.key_of(replace(config, command_line="quiet"))
    assert key != place.key_of(replace(config, name="other"))
    config.kernel.write_bytes(b"y2")
    assert key != place.key_of(config)
    config.kernel.unlink()
    assert place.key_of(config) is None


def test_without_a_pool_nothing_happens(config, root):
    assert client.run(config, ["true"]) is None
    root.mkdir(mode=0o700)
    assert client.run(config, ["true"]) is None
    (root / place.key_of(config)).mkdir()
    assert client.run(config, ["true"]) is None


@pytest.mark.parametrize("mode", [0o755, 0o770])
def test_a_directory_that_others_may_use_is_not_used(config, root, mode):
    directory = root / place.key_of(config)
    directory.mkdir(parents=True)
    with listening(directory / protocol.MACHINES):
        root.chmod(mode)
        assert client.run(config, ["true"]) is None


def test_a_pool_without_a_machine_is_left(config, root, monkeypatch):
    monkeypatch.setattr(protocol, "PATIENCE", 0.05)
    directory = root / place.key_of(config)
    directory.mkdir(parents=True)
    root.chmod(0o700)
    with listening(directory / protocol.MACHINES) as pool:
        assert client.run(config, ["true"]) is None
        link, _ = pool.accept()
        with link:
            # It has said nothing, so that the next client may have the machine.
            assert link.recv(100) == b""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (place.encode(code=7), 7),
        (place.encode(broken=True), BrokenPipeError),
        (b"", "ended before the command"),
        (b"{nonsense", "ended before the command"),
        (place.encode(error={"kind": "guest", "message": "panic"}), "panic"),
    ],
)
def test_answers(config, root, answer, expected):
    from threading import Thread

    from ringzero.errors import RingzeroError

    directory = root / place.key_of(config)
    directory.mkdir(parents=True)
    root.chmod(0o700)
    heard = []

    def serve(pool):
        link, _ = pool.accept()
        with link:
            link.send(protocol.GREETING)
            _, descriptors, _, _ = socket.recv_fds(link, 100, 8)
            heard.append(place.decode(os.pread(descriptors[0], protocol.MAX_REQUEST, 0)))
            for descriptor in descriptors:
                os.close(descriptor)
            if answer:
                link.send(answer)

    with listening(directory / protocol.MACHINES) as pool:
        thread = Thread(target=serve, args=(pool,))
        thread.start()
        if isinstance(expected, int):
            assert client.run(config, ["echo", "\udcff"], timeout=3) == expected
        elif isinstance(expected, str):
            with pytest.raises(RingzeroError, match=expected):
                client.run(config, ["echo", "\udcff"], timeout=3)
        else:
            with pytest.raises(expected):
                client.run(config, ["echo", "\udcff"], timeout=3)
        thread.join()
    assert heard[0]["words"] == ["echo", "\udcff"]
    assert heard[0]["timeout"] == 3


def test_an_error_that_is_too_long_for_a_message_is_cut():
    long = place.encode(error={"kind": "guest", "message": "x" * 200_000, "context": {}})
    assert len(long) <= protocol.MESSAGE
    assert place.decode(long)["error"]["kind"] == "guest"


def test_what_is_no_message():
    for data in (b"", b"\xff", b"[]", b"3", b"{", b"null"):
        assert place.decode(data) == {}
