"""The program: its flags, its exit codes, its socket."""

import socket
import subprocess
import sys

import pytest

from ringzero.doors.firecracker.table import API_VERSION, SNAPSHOT_VERSION
from tests.doors.firecracker.microvm import MicroVm

PROGRAM = [sys.executable, "-m", "ringzero.cli.firecracker"]


def run(*words):
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60)


def test_versions():
    found = run("--version")
    assert (found.returncode, found.stdout.splitlines()[0]) == (0, f"Firecracker v{API_VERSION}")
    assert run("--snapshot-version").stdout == f"v{SNAPSHOT_VERSION}\n"
    assert "--api-sock" in run("--help").stdout


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--no-such-flag"], "no-such-flag"),
        (["--no-api"], "requires 'config-file'"),
        (["--id", "a_b"], "no ID"),
        (["--id", "x" * 65], "no ID"),
        (["--level", "loud"], "Invalid value for logger level"),
        (["--http-api-max-payload-size", "-1"], "whole number"),
        (["--network", "wifi"], "tap and user"),
        (["--no-seccomp", "--seccomp-filter", "x"], "exclude"),
    ],
)
def test_flags_that_are_wrong(words, part):
    found = run(*words)
    assert found.returncode == 153
    assert part in found.stderr
    assert "Traceback" not in found.stderr


def test_a_configuration_that_is_wrong(tmp_path):
    path = tmp_path / "vm.json"
    for text in ("", "[]", "{}", '{"boot-source": {}}', "\xff"):
        path.write_text(text, encoding="latin-1")
        found = run("--no-api", "--config-file", str(path))
        assert (found.returncode, "Traceback" in found.stderr) == (152, False), found.stderr
    assert run("--no-api", "--config-file", str(tmp_path / "none")).returncode == 152


@pytest.mark.parametrize("dead", [False, True])
def test_a_socket_that_is_there_is_refused(tmp_path, dead):
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as link:
        if dead:
            link.bind(str(path))
        else:
            path.touch()
    found = run("--api-sock", str(path))
    assert found.returncode == 1
    assert f"Failed to open the API socket at: {path}" in found.stderr
    assert path.exists()


def raw(vm, data):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(20)
        link.connect(str(vm.socket))
        link.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = link.recv(1 << 16)
            if not more:
                break
            answer += more
        return answer


def test_the_wire(tmp_path):
    with MicroVm(tmp_path, "--http-api-max-payload-size", "100") as vm:
        head = b"HTTP/1.1\r\nHost: localhost\r\n"
        # A client sends a length with a GET.
        assert raw(vm, b"GET / " + head + b"Content-Length: 0\r\n\r\n").startswith(b"HTTP/1.1 200")
        body = b'{"vcpu_count": 1, "mem_size_mib": 64}'
        put = b"PUT /machine-config " + head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        answer = raw(vm, put)
        assert answer.startswith(b"HTTP/1.1 204")
        assert b"content-length" not in answer.lower()
        assert b"content-type" not in answer.lower()
        long = b"PUT /mmds " + head + b"Content-Length: 101\r\n\r\n" + b"x" * 101
        answer = raw(vm, long)
        assert answer.startswith(b"HTTP/1.1 413")
        assert raw(vm, b"PUT / HTTP/9\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert raw(vm, b"\0\xff\r\n\r\n").startswith(b"HTTP/1.1 400")
        assert vm.ask("GET", "/machine-config")[1]["mem_size_mib"] == 64


def test_many_clients_at_once(tmp_path):
    with MicroVm(tmp_path) as vm:
        links = []
        for _ in range(50):
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(20)
            link.connect(str(vm.socket))
            links.append(link)
        for link in links:
            link.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        for link in links:
            answer = b""
            while answer.count(b"Not started") < 3:
                answer += link.recv(1 << 16)
            link.close()
