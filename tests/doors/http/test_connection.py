"""One connection: what clients send, wholly, in pieces, wrongly, or not at all."""

import asyncio
import json
import socket

import pytest

from ringzero.doors.http import connection
from ringzero.doors.http.connection import HttpConnection
from ringzero.doors.http.messages import Response
from ringzero.errors import RingzeroError


def talk(*pieces, handle=None, leaves=False):
    """Send pieces to a server of one connection; return what it answered, and its end."""

    async def run():
        upgraded = []

        async def serve(reader, writer):
            async def upgrade(request, rest):
                upgraded.append((request.target, rest))

            try:
                await HttpConnection(reader, writer, handle or echo, upgrade).serve()
                ends.append("left")
            except (ConnectionError, TimeoutError) as fault:
                ends.append(type(fault).__name__)
            finally:
                writer.close()
                ended.set()

        ends, ended = [], asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        if leaves:
            writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await asyncio.wait_for(ended.wait(), 20)
        server.close()
        await server.wait_closed()
        return answer, ends, upgraded

    return asyncio.run(run())


async def echo(request):
    return Response.json(
        {
            "method": request.method,
            "segments": request.segments,
            "query": request.query,
            "body": (await request.read()).decode(),
        }
    )


def answers(data):
    """Return (status, JSON) of all answers in bytes."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        if status == 100:
            continue
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        found.append((status, json.loads(data[:length]) if length else None))
        data = data[length:]
    return found


CLOSE = b"GET /end HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def test_requests_one_after_the_other():
    post = b"POST /a%20b/c?d=%C3%A9&e HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
    answer, ends, _ = talk(post + post + CLOSE)
    first, second, last = answers(answer)
    assert first == second
    assert first == (
        200,
        {
            "method": "POST",
            "segments": ["a b", "c"],
            "query": [["d", "é"], ["e", ""]],
            "body": "{}",
        },
    )
    assert last[1]["segments"] == ["end"]
    assert ends == ["left"]


def test_in_single_bytes():
    text = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    answer, _, _ = talk(*[text[n : n + 1] for n in range(len(text))], CLOSE)
    assert answers(answer)[0][1]["body"] == "abc"


def test_one_who_waits_to_be_told_to_go_on():
    head = b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
    answer, _, _ = talk(head, b"abc", CLOSE)
    assert answer.startswith(b"HTTP/1.1 100 ")
    assert answers(answer)[0][1]["body"] == "abc"


def test_head_has_no_body():
    answer, _, _ = talk(CLOSE.replace(b"GET", b"HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "text",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_request_is_told_so(text):
    answer, ends, _ = talk(text, leaves=True)
    ((status, told),) = answers(answer)
    assert 400 <= status < 500
    assert told["error"]["message"].startswith("no request of HTTP/1.1")
    assert ends == ["left"]


def test_one_who_leaves_within_a_request():
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"
    answer, ends, _ = talk(post, leaves=True)
    assert ends == ["left"]
    assert answers(answer)[0][0] == 400
    assert talk(b"GET / HT", leaves=True)[1] == ["left"]
    assert talk(leaves=True)[:2] == (b"", ["left"])


@pytest.mark.parametrize(
    "text", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab"]
)
def test_one_who_says_half_is_left(monkeypatch, text):
    monkeypatch.setattr(connection, "_IDLE", 0.2)
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)
    assert talk(text)[1] == ["TimeoutError"]


def test_one_who_does_not_read_is_left(monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.2)

    async def much(request):
        async def parts():
            while True:
                yield bytes(1 << 20)

        return Response(200, type="application/x", parts=parts())

    async def run():
        ended = asyncio.Event()

        async def serve(reader, writer):
            with pytest.raises(TimeoutError):
                await HttpConnection(reader, writer, much, None).serve()
            ended.set()
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1)
        writer.write(CLOSE)
        await asyncio.wait_for(ended.wait(), 20)
        writer.close()
        server.close()

    asyncio.run(run())


def test_a_body_that_nobody_reads_ends_the_connection():
    async def refuse(request):
        return Response.error(RingzeroError("no"), 403)

    long = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + bytes(200_000)
    answer, ends, _ = talk(long, handle=refuse)
    assert answers(answer)[0][0] == 403
    assert b"connection: close" in answer.lower()
    assert ends == ["left"]
    short = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
    assert [s for s, _ in answers(talk(short + CLOSE, handle=refuse)[0])] == [403, 403]


def test_a_fault_of_ours_is_told_without_its_inside(capsys):
    async def broken(request):
        raise ZeroDivisionError("secret")

    answer, _, _ = talk(CLOSE, handle=broken)
    ((status, told),) = answers(answer)
    assert status == 500
    assert "secret" not in json.dumps(told)
    assert "ZeroDivisionError: secret" in capsys.readouterr().err


def test_a_request_for_a_websocket_is_handed_on():
    head = b"GET /v1/x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: WebSocket\r\n\r\n"
    _, ends, upgraded = talk(head + b"rest")
    assert upgraded == [("/v1/x", b"rest")]
    assert ends == ["left"]


def test_a_head_that_comes_by_and_by_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(connection, "_PATIENCE", 0.3)

    async def run():
        ended = asyncio.Event()

        async def serve(reader, writer):
            with pytest.raises(TimeoutError):
                await HttpConnection(reader, writer, echo, None).serve()
            ended.set()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(20):
            while not ended.is_set():
                writer.write(b"a")
                await asyncio.sleep(0.02)
        writer.close()
        server.close()

    asyncio.run(run())


def test_what_makes_a_response_is_ended_with_it():
    """Also where none of it is sent: to a client that asks for the head alone, or has left."""
    closed = []

    async def parts():
        try:
            yield b"begun"
            while True:
                yield bytes(1 << 16)
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def stream(request):
        made = parts()
        return Response(200, await anext(made), "application/x", parts=made)

    talk(CLOSE.replace(b"GET", b"HEAD"), handle=stream)
    assert closed == [True]

    async def run():
        reader = asyncio.StreamReader()
        reader.feed_data(CLOSE)

        class Writer:
            transport = None

            def write(self, data):
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await HttpConnection(reader, Writer(), stream, None).serve()

    asyncio.run(run())
    assert closed == [True, True]


def test_one_who_leaves_while_a_response_is_made(monkeypatch):
    monkeypatch.setattr(connection, "_LOOK", 0.02)

    async def run():
        cancelled, ended = asyncio.Event(), asyncio.Event()

        async def never(request):
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async def serve(reader, writer):
            with pytest.raises(ConnectionError):
                await HttpConnection(reader, writer, never, None).serve()
            writer.close()
            ended.set()

        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        serving = asyncio.ensure_future(serve(reader, writer))
        theirs.sendall(CLOSE)
        theirs.shutdown(socket.SHUT_WR)
        # One who has said all waits for the answer.
        await asyncio.sleep(0.1)
        assert not cancelled.is_set()
        theirs.close()
        await asyncio.wait_for(ended.wait(), 20)
        assert cancelled.is_set()
        await serving

    asyncio.run(run())
