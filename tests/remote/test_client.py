"""The client's contract, by each way to another host: sync and asyncio."""

import asyncio
import itertools
import threading

import pytest

from ringzero.api.action import Stream, declared
from ringzero.api.host import HostActions
from ringzero.api.machine import MachineActions
from ringzero.errors import (
    ConflictError,
    ControlError,
    InvalidValueError,
    NotFoundError,
)
from ringzero.remote import AsyncClient, AsyncMachine
from tests.control.fake import Taker, start
from tests.remote.conftest import attached


def test_the_actions_are_all_there_for_asyncio():
    for kind, actions in ((AsyncMachine, MachineActions), (AsyncClient, HostActions)):
        for name in declared(actions):
            assert vars(kind).get(name) is vars(actions)[name], name


def test_the_life_of_a_machine(way):
    with way.client() as host:
        assert host.version()
        assert host.machines() == []
        name = host.define({"kernel": "/dev/null", "agent": True, "nets": ["user"]}, name="web")
        web = host.machine(name)
        assert web.inspect()["status"] == "defined"
        with pytest.raises(ConflictError, match="never started") as caught:
            web.pause()
        assert "ringzero start web" in caught.value.hint
        web.start()
        assert web.ping() == "running"
        assert [m["name"] for m in host.machines(status="running")] == ["web"]
        web.pause()
        assert web.inspect()["status"] == "paused"
        web.resume()
        assert [copy.name for copy in web.copies(2)] == ["web-1", "web-2"]
        web.describe(title="ü\n✓", metadata={"a": "b"})
        assert web.metadata()["title"] == "ü\n✓"
        assert web.publish("0:80")[0]["guest_port"] == 80
        assert web.stop(timeout=2.5).reason == "poweroff"
        web.rename("old")
        assert web.name == "old"
        web.remove()
        with pytest.raises(NotFoundError, match="no machine called 'old'"):
            web.inspect()
        with pytest.raises(InvalidValueError):
            host.machine("../x").inspect()


def test_commands(way):
    start("web")
    with way.client() as host:
        web = host.machine("web")
        found = web.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], input=b"\0\xff" * 200_000)
        assert (found.stdout, found.stderr) == (b"\0\xff" * 200_000, b"wrong\n")
        assert found.exit_code == 3
        assert web.run("echo $((6*7))", text=True).stdout == "42\n"
        # Many at once, on threads.
        outputs = [None] * 8

        def run(number):
            outputs[number] = web.run(["echo", str(number)], text=True).stdout

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outputs == [f"{number}\n" for number in range(8)]


def test_a_console_and_its_end(way):
    start("web")
    with way.client() as host:
        taker = Taker()
        ended = threading.Event()

        def attach():
            host.machine("web").console(taker)
            ended.set()

        thread = threading.Thread(target=attach)
        thread.start()
        assert taker.begun.wait(20)
        taker.link.event("resize", rows=10, columns=20)
        taker.link.send(b"typed")
        while b"<typed>" not in taker.shown:
            assert thread.is_alive()
        taker.link.send(b"")
        assert ended.wait(20)
        thread.join()


def test_events_and_logs(way):
    with way.client() as host:
        found = []
        seen = threading.Event()

        def watch():
            for event in host.watch():
                found.append((event.machine, event.kind))
                seen.set()
                if event.kind == "ended":
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        for number in itertools.count():
            # Until the watch is there nobody hears of it.
            start(f"m{number}")
            if seen.wait(1):
                break
        host.machine(f"m{number}").kill()
        thread.join(30)
        assert not thread.is_alive()
        assert (f"m{number}", "ended") in found
        taker = Taker()
        host.machine(f"m{number}").logs(taker, lines=5)
        assert taker.begun.is_set()


def test_jobs(way):
    if way.url.startswith("ssh:"):
        pytest.skip("each connection has its own server where none runs")
    start("web")
    with way.client() as host:
        job = host.begin("fork", {"count": 2}, "web")
        assert job.wait() == ["web-1", "web-2"]
        assert job.status == "done"
        job = host.begin("start", machine="web")
        with pytest.raises(ConflictError):
            job.wait()
        with pytest.raises(NotFoundError):
            host.job("999")
        with pytest.raises(InvalidValueError):
            host.begin("machines")


def test_asyncio(way):
    async def use():
        async with AsyncClient(way.url, token=way.token, authorities=way.authorities) as host:
            web = host.machine("web")
            pairs = await asyncio.gather(web.ping(), host.machines(), web.inspect())
            assert pairs[0] == "running"
            assert pairs[1][0]["name"] == pairs[2]["name"] == "web"
            found = await web.run(["cat"], input="hello", text=True)
            assert found.stdout == "hello"
            async with web.open("exec", words=["cat"], stdin=True) as talk:
                await talk.send(b"one")
                await talk.send(b"")
                said = [item.content async for item in talk.items() if item.content]
            assert (said, talk.result) == ([b"one"], {"status": 0})
            # Who leaves in the middle is missed by nobody.
            async with web.open("console"):
                pass
            with pytest.raises(NotFoundError):
                await host.machine("nobody").exec(Stream(), ["true"])
            assert (await web.stop(timeout=1)).reason == "poweroff"

    start("web")
    asyncio.run(use())


def test_a_closed_client_says_so(way):
    host = way.client()
    host.machines()
    host.close()
    host.close()
    with pytest.raises(ConflictError, match="closed"):
        host.machines()


def test_who_waits_hears_that_the_client_was_closed(way):
    start("web")
    host = way.client()
    thread, faults = attached(host.machine("web"), Taker())
    host.close()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(faults[0], ControlError)
