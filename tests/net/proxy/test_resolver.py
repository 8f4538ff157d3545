"""Questions to the host's resolvers: dead, slow and refusing ones, files that change."""

import contextlib
import socket
import threading
import time

import pytest

from ringzero.net.proxy import resolver as module
from ringzero.net.proxy.loop import EventLoop
from ringzero.net.proxy.resolver import BOUND, Resolver

QUERY = bytes.fromhex("0007010000010000000000000161076578616d706c65000001 0001".replace(" ", ""))
REFUSED = 5


@pytest.fixture
def loop():
    loop = EventLoop("test", lambda now: None, lambda: None)
    loop.start()
    yield loop
    loop.close()


@pytest.fixture
def files(tmp_path):
    names = tmp_path / "resolv.conf", tmp_path / "hosts"
    for name in names:
        name.write_text("")
    return names


@contextlib.contextmanager
def server(address, answer, port=0):
    """Serve DNS over UDP at a loopback address; yield the port. `answer` may return None."""
    with socket.socket(type=socket.SOCK_DGRAM) as link:
        link.bind((address, port))
        link.settimeout(0.05)
        done = threading.Event()

        def work():
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    query, peer = link.recvfrom(2048)
                    data = answer(query)
                    if data is not None:
                        link.sendto(data, peer)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield link.getsockname()[1]
        finally:
            done.set()
            thread.join()


def ask(loop, resolver, stream=False):
    """Return an answer, and how long it took."""
    found, over, began = [], threading.Event(), time.monotonic()

    def hear(data):
        found.append(data)
        over.set()

    loop.call(lambda: resolver.ask(QUERY, stream, hear))
    assert over.wait(BOUND + 5)
    assert len(found) == 1
    return found[0], time.monotonic() - began


def reply(query, code=0):
    return query[:2] + bytes((0x81, 0x80 | code)) + query[4:]


def configured(files, *servers):
    files[0].write_text("".join(f"nameserver {s}\n" for s in servers))


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_there(loop, files, stream, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "_PORT", free.getsockname()[1])
        configured(files, "127.0.0.1", "127.0.0.2")
        answer, took = ask(loop, Resolver(loop, *files), stream)
    assert answer is None and took < BOUND + 1


def test_one_that_never_answers(loop, files, monkeypatch):
    asked = []
    with server("127.0.0.1", asked.append) as port:
        monkeypatch.setattr(module, "_PORT", port)
        configured(files, "127.0.0.1")
        answer, took = ask(loop, Resolver(loop, *files))
    assert answer is None and BOUND - 0.5 < took < BOUND + 1
    assert len(asked) == 2, "datagrams get lost"


def test_a_slow_one_may_still_answer(loop, files, monkeypatch):
    def slow(query):
        if not over.is_set():
            over.wait(2.0)
        return reply(query)

    over = threading.Event()
    with server("127.0.0.1", slow) as port:
        monkeypatch.setattr(module, "_PORT", port)
        configured(files, "127.0.0.1")
        answer, took = ask(loop, Resolver(loop, *files))
        over.set()
    assert answer == reply(QUERY) and took > 1.5


def test_the_next_is_asked(loop, files, monkeypatch):
    with server("127.0.0.2", reply) as port:
        monkeypatch.setattr(module, "_PORT", port)
        configured(files, "127.0.0.1", "127.0.0.2")
        with server("127.0.0.1", lambda query: reply(query, REFUSED), port):
            answer, took = ask(loop, Resolver(loop, *files))
            assert answer == reply(QUERY) and took < 1.0
        with server("127.0.0.1", lambda query: None, port):
            answer, took = ask(loop, Resolver(loop, *files))
            assert answer == reply(QUERY) and took < BOUND


def test_all_refuse(loop, files, monkeypatch):
    with server("127.0.0.1", lambda query: reply(query, REFUSED)) as port:
        monkeypatch.setattr(module, "_PORT", port)
        configured(files, "127.0.0.1")
        answer, took = ask(loop, Resolver(loop, *files))
    assert answer == reply(QUERY, REFUSED) and took < 1.0


def test_answers_that_are_none(loop, files, monkeypatch):
    with server("127.0.0.1", lambda query: b"\0\0" + reply(query)[2:]) as port:
        monkeypatch.setattr(module, "_PORT", port)
        configured(files, "127.0.0.1")
        assert ask(loop, Resolver(loop, *files))[0] is None


def test_too_many_questions(loop, files, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUESTIONS", 0)
    answer, took = ask(loop, Resolver(loop, *files))
    assert answer is None and took < 1.0


def test_no_descriptors(loop, files, monkeypatch):
    def none(*_):
        raise OSError(24, "Too many open files")

    resolver = Resolver(loop, *files)
    monkeypatch.setattr(module.socket, "socket", none)
    answer, took = ask(loop, resolver)
    assert answer is None and took < 1.0


def test_the_hosts_files_are_followed(loop, files, monkeypatch):
    configured(files, "nobody", "fe80::1%lo", "127.0.0.1")
    resolver = Resolver(loop, *files)
    assert resolver.servers == ["fe80::1%lo", "127.0.0.1"], "names would have to be looked up"
    assert resolver.search == () and resolver.get("a.example") is None
    with server("127.0.0.3", reply) as port:
        monkeypatch.setattr(module, "_PORT", port)
        files[0].write_text("search one.example two.example\nnameserver 127.0.0.3\n")
        assert ask(loop, resolver)[0] == reply(QUERY)
    assert resolver.search == ("one.example", "two.example")
    files[1].write_text("192.0.2.1 a.example\n")
    assert resolver.get("a.example") == [bytes((192, 0, 2, 1))]
    files[1].write_text("192.0.2.22 a.example\n")
    assert resolver.get("a.example") == [bytes((192, 0, 2, 22))]
    files[0].unlink()
    files[1].unlink()
    assert resolver.get("a.example") is None and resolver.servers == ["127.0.0.1"]


def test_the_hosts_own_names(loop, files):
    files[1].write_text(
        "127.0.0.1 localhost dev.example\n::1 localhost ip6-loopback dev.example\n"
        "0.0.0.0 blocked.example\n255.255.255.255 broadcasthost\nnonsense line\n"
    )
    here = bytes((10, 0, 2, 2)), bytes(15) + b"\2"
    resolver = Resolver(loop, *files, here=here)
    assert resolver.get("dev.example") == list(here)
    for name in ("localhost", "ip6-loopback", "blocked.example", "broadcasthost", "line"):
        assert resolver.get(name) is None
    assert Resolver(loop, *files).get("dev.example") is None, "the host is closed"
