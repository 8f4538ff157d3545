"""passt as the way out: a process of its own, whose end is told; with Linux as its guest."""

import hashlib
import os
import random
import shutil
import signal
import time

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.errors import ConfigError, HostError
from ringzero.net.networks import passt
from ringzero.net.networks.passt import PasstNetwork
from tests.net.linux_guest import MAC, LinuxGuest, missing
from tests.net.networks.test_user import server

TARGET = ""
REASON = missing() or (None if shutil.which("passt") else "needs passt")
linux = pytest.mark.skipif(REASON is not None, reason=REASON or "")


# One way after the other: passt 0.0~git20230309 sends bytes twice where both are full.
DATA = random.Random(6).randbytes(1 << 20)
DIGEST = hashlib.sha256(DATA).hexdigest()
GET = """
import hashlib, socket
def get(host, port):
    with socket.create_connection((host, port), 20) as link:
        digest = hashlib.sha256()
        while piece := link.recv(1 << 16):
            digest.update(piece)
        return digest.hexdigest()
"""


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.01)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Guest(LinuxGuest):
    """Keeps what it hears of its link."""

    links = ()

    def set_link(self, up):
        self.links = (*self.links, up)


def configure(machine, tmp_path):
    """Ask for an address by DHCP; return the gateway's."""
    script = tmp_path / "script"
    script.write_text(
        '#!/bin/sh\n[ "$1" = bound ] && ip addr replace $ip/$mask dev eth0 && '
        "ip route replace default via $router && echo router $router\nexit 0\n"
    )
    script.chmod(0o755)
    machine.shell("ip addr flush dev eth0 scope global")
    said = machine.shell(f"busybox udhcpc -i eth0 -n -q -f -t 20 -T 1 -s {script} 2>/dev/null")
    return said.split("router ")[1].split()[0]


@linux
@pytest.mark.peer
@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_a_way_out_that_is_killed_and_comes_again(tmp_path, capfd):
    network = PasstNetwork(NetConfig("passt", mac=MAC))
    with Guest(network) as machine, server(lambda link: link.sendall(DATA)) as port:
        first = network._process.pid
        until(lambda: machine.links == (True,))
        gateway = configure(machine, tmp_path)
        assert machine.run(f"{GET}\nresult = get({gateway!r}, {port})") == DIGEST
        os.kill(first, signal.SIGKILL)
        until(lambda: machine.links == (True, False, True))
        assert network.counters()["restarts"] == 1
        second = network._process.pid
        assert configure(machine, tmp_path) == gateway
        assert machine.run(f"{GET}\nresult = get({gateway!r}, {port})") == DIGEST
    assert "passt ended (signal 9)" in capfd.readouterr().err
    assert second != first and gone(first) and gone(second)


def test_a_host_without_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="no passt") as caught:
        PasstNetwork(NetConfig("passt"))
    assert "--net user" in caught.value.hint


def test_one_that_does_not_start(tmp_path, monkeypatch):
    program = tmp_path / passt.PROGRAM
    program.write_text("#!/bin/sh\necho first >&2; echo no such luck >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match="does not start: no such luck"):
        PasstNetwork(NetConfig("passt"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_does_not_listen(tmp_path):
    with pytest.raises(ConfigError):
        PasstNetwork(NetConfig("passt", str(tmp_path / "s"), listen=True))
