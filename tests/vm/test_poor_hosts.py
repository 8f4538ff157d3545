"""The user network on hosts without IPv6: where it is switched off, and where there is none."""

import ctypes
import json
import os
import shutil
import struct
import subprocess
import sys

import pytest

from ringzero.errors import HostError
from ringzero.image.micro import ensure

pytestmark = [pytest.mark.boot, pytest.mark.engine]

PROGRAM = """
import http.server, json, threading, time
from ringzero.errors import RingzeroError
from ringzero.vm.machine import Machine

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello")
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
said = {}
with Machine(image="micro", memory="128M", engine="soft") as machine:
    def ask(url):
        began = time.monotonic()
        done = machine.run(f"wget -qO- '{url}'", timeout=60, text=True)
        return done.exit_code, done.stdout, time.monotonic() - began
    said["name"] = ask(f"http://host.ringzero.internal:{server.server_port}/")
    # A guest that has just begun still looks whether somebody else has its address.
    machine.run(
        "for i in $(seq 50); do ip -6 addr show dev eth0 scope global | grep inet6 |"
        " grep -qv tentative && ip -6 route | grep -q default && break; sleep 0.1; done",
        timeout=60,
    )
    said["six"] = ask(f"http://[fd72:7a00:0:2::2]:{server.server_port}/")
    said["world"] = ask("http://[2001:db8::1]/")
    said["names"] = machine.run("nslookup nobody.invalid", timeout=60).exit_code
    try:
        machine.nets.publish("[::1]:0:80")
    except RingzeroError as fault:
        said["port"] = type(fault).__name__, fault.message, fault.hint
    machine.nets.publish("0:80")
    said["faults"] = machine.stats()["net"]["eth0"].get("faults")
print(json.dumps(said))
"""
# Linux: prctl(2), seccomp(2), and classic BPF over struct seccomp_data.
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000
SOCKET, AF_INET6, EAFNOSUPPORT = 41, 10, 97


def without_inet6():
    """Have every socket of IPv6 refused from now on, as by a kernel that has none."""
    steps = [
        (LOAD, 0, 0, 0),
        (EQUAL, 0, 3, SOCKET),
        (LOAD, 0, 0, 16),
        (EQUAL, 0, 1, AF_INET6),
        (RETURN, 0, 0, ERROR | EAFNOSUPPORT),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("=HxxxxxxQ", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


SWITCHED_OFF = (
    "ip link set lo up && echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && "
    'echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6 && exec "$@"'
)


@pytest.fixture(scope="module", autouse=True)
def image():
    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


@pytest.fixture(params=["switched off", "none"])
def host(request):
    """What runs a program on such a host, and by what before its start."""
    if request.param == "none":
        if os.uname().machine != "x86_64":
            pytest.skip("the numbers of system calls are those of x86-64")
        return [], without_inet6
    words = ["unshare", "-rn", "sh", "-c", SWITCHED_OFF, "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not make a network namespace")
    return words, None


def test_a_host_without_ipv6(host):
    words, before = host
    done = subprocess.run(
        [*words, sys.executable, "-c", PROGRAM],
        capture_output=True, preexec_fn=before, timeout=240, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr.decode()[-3000:]
    assert b"Traceback" not in done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["name"][:2] == [0, "hello"], "IPv4, by a name that has both"
    assert said["six"][:2] == [0, "hello"], "who asks for the host by IPv6 gets its IPv4"
    status, _, took = said["world"]
    assert status != 0 and took < 10, "it is told at once"
    assert said["port"] == ["HostError", "this host has no address ::1", "`ip address` lists them"]
    assert said["faults"] == 0
