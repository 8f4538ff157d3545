"""What a probe makes of answers, good and hostile ones."""

import contextlib
import socket
import threading
import time

import pytest

from ringzero.deployment.description import HTTP, TCP, Check
from ringzero.deployment.probe import ask

_RESET = b"\1\0\0\0\0\0\0\0"


@pytest.fixture
def server():
    """Serves each connection by a function; returns the port."""
    with contextlib.ExitStack() as stack:

        def serve(act):
            listener = socket.create_server(("127.0.0.1", 0))
            stack.callback(listener.close)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)

            def loop():
                with contextlib.suppress(OSError):
                    while True:
                        link, _ = listener.accept()
                        threading.Thread(target=one, args=(link,), daemon=True).start()

            def one(link):
                with contextlib.suppress(OSError), link:
                    act(link)

            threading.Thread(target=loop, daemon=True).start()
            return listener.getsockname()[1]

        yield serve


def says(data):
    def act(link):
        while b"\r\n\r\n" not in link.recv(4096):
            pass
        link.sendall(data)

    return act


def reset(link):
    link.recv(4096)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def drips(link):
    while True:
        link.sendall(b"x")
        time.sleep(0.05)


def hangs(link):
    time.sleep(60)


@pytest.mark.parametrize(
    ("data", "code", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", 0, "GET /x: HTTP/1.1 200 OK"),
        (b"HTTP/1.0 302\n", 0, "302"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", 1, "404 Not Found"),
        (b"HTTP/1.1 503 Later\r\n\r\n", 1, "503 Later"),
        (b"", 1, "it hung up"),
        (b"SSH-2.0-x\r\n", 1, "no answer of HTTP"),
        (b"HTTP/1.1\r\n", 1, "no answer of HTTP"),
        (b"HTTP/1.1 -200 OK\r\n", 1, "no answer of HTTP"),
        (b"\xff\0" * 10_000, 1, "no answer of HTTP"),
    ],
)
def test_answers_of_http(server, data, code, told):
    found = ask(Check(HTTP, 80, "/x", timeout=20), server(says(data)))
    assert found["exit_code"] == code
    assert told in found["output"] and len(found["output"]) < 4096
    assert found["start"] <= found["end"]


@pytest.mark.parametrize("kind", [HTTP, TCP])
def test_nobody_and_resets(server, kind):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert ask(Check(kind, 80), port)["exit_code"] == 1
    assert "reset" in ask(Check(kind, 80, timeout=20), server(reset))["output"].lower()


@pytest.mark.parametrize("act", [drips, hangs])
def test_no_answer_takes_longer_than_it_may(server, act):
    began = time.monotonic()
    found = ask(Check(HTTP, 80, timeout=0.3), server(act))
    assert (found["exit_code"], found["output"]) == (1, "no answer within 0.3 s")
    assert time.monotonic() - began < 20


def test_tcp(server):
    check = Check(TCP, 80, timeout=20)
    # One that speaks first, and one that ends as we do.
    assert ask(check, server(lambda link: link.sendall(b"hello")))["exit_code"] == 0
    assert ask(check, server(lambda link: link.recv(1)))["exit_code"] == 0
    assert ask(Check(TCP, 80, timeout=0.2), server(hangs))["exit_code"] == 1
