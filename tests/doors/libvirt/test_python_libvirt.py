"""An unmodified python3-libvirt against the door, from two processes at once."""

import subprocess
import sys

import pytest

from ringzero.control.host import client
from tests.doors.libvirt.test_virsh import DOMAIN, virsh

__all__ = ["virsh"]
# Debian's, which its own interpreter finds.
PYTHON = "/usr/bin/python3"
SCRIPT = r"""
import sys, threading, time
import libvirt

uri, name, xml = sys.argv[1:]
libvirt.virEventRegisterDefaultImpl()
over = False

def loop():
    while not over:
        libvirt.virEventRunDefaultImpl()

# A timer has the loop come round.
libvirt.virEventAddTimeout(100, lambda *_: None, None)
runner = threading.Thread(target=loop, daemon=True)
runner.start()
link = libvirt.open(uri)
seen = []
link.domainEventRegisterAny(
    None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    lambda link, domain, event, detail, _: seen.append((domain.name(), event)), None,
)
domain = link.defineXML(xml)
domain.create()
assert domain.isActive() and domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING
assert domain.UUIDString() in domain.XMLDesc()
stream = link.newStream()
domain.openConsole(None, stream)
said = b""
stream.send(b"typed\n")
while b"typed" not in said:
    said += stream.recv(1024)
stream.abort()
domain.suspend()
domain.resume()
stats = link.domainListGetStats([domain])
assert stats[0][1]["state.state"] == 1
domain.destroy()
domain.undefine()
wanted = [
    libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED,
    libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_STOPPED,
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED,
]
deadline = time.monotonic() + 20
while [e for n, e in seen if n == name and e in wanted] != wanted:
    assert time.monotonic() < deadline, seen
    time.sleep(0.05)
over = True
runner.join(10)
link.close()
print("right")
"""


def _there():
    asked = [PYTHON, "-c", "import libvirt"]
    try:
        return subprocess.run(asked, capture_output=True, timeout=30).returncode == 0
    except OSError:
        return False


pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not _there(), reason="python3-libvirt is Debian's"),
]


def test_two_processes_at_once(virsh):
    uri = virsh.words[-1]
    clients = [
        subprocess.Popen(
            [PYTHON, "-c", SCRIPT, uri, name, DOMAIN.format(name=name, more="", type="qemu")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    try:
        for asking in clients:
            out, err = asking.communicate(timeout=60)
            assert out == "right\n", (out, err, sys.version)
    finally:
        for asking in clients:
            asking.kill()
    assert client.host().machines() == []
