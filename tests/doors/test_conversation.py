"""Actions that stream, beside one another."""

import asyncio
import threading

from ringzero.doors.caller import Caller
from ringzero.doors.manager import Manager

ME = Caller("me")


class Busy:
    """A machine that takes nothing until `free` is set; "idle" takes all."""

    def __init__(self):
        self.free = threading.Event()
        self.left = threading.Event()
        self.taken = []

    def send(self, data):
        self.free.wait(20)

    def close(self):
        self.left.set()


class Idle(Busy):
    def send(self, data):
        self.taken.append(data)


class Machines:
    """In the place of the host."""

    def __init__(self, links):
        self.links = links

    def call(self, name, arguments, machine, stream):
        link = self.links[machine]
        stream.begin(link)
        link.left.wait(20)


def test_machines_that_take_nothing_keep_nobody_waiting():
    links = {f"m{number}": Busy() for number in range(50)} | {"idle": Idle()}

    async def run():
        manager = Manager(Machines(links), None, None)
        talks = [manager.converse("console", {}, name, caller=ME) for name in links]
        *busy, idle = [asyncio.ensure_future(talk.send(b"x")) for talk in talks]
        await asyncio.wait_for(idle, 20)
        assert links["idle"].taken == [b"x"]
        assert not any(sending.done() for sending in busy)
        for link in links.values():
            link.free.set()
        await asyncio.gather(*busy)
        await manager.close()
        # Their threads have ended, too.
        async with asyncio.timeout(20):
            while any(thread.name == "stream-console" for thread in threading.enumerate()):
                await asyncio.sleep(0.01)

    asyncio.run(run())
