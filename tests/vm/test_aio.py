"""Machines under asyncio: nothing blocks the loop, cancelling ends what was asked for."""

import asyncio
import time

import pytest

import ringzero
from ringzero.errors import HostError, InvalidValueError, TimeoutExpiredError
from ringzero.vm.aio import AsyncMachine, in_thread
from tests.engine.fake import FakeEngine


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


def test_many_threads_at_once_and_their_errors():
    async def main():
        begin = time.monotonic()
        results = await asyncio.gather(
            *(in_thread(lambda n=n: time.sleep(0.2) or n) for n in range(50))
        )
        assert results == list(range(50)) and time.monotonic() - begin < 5
        with pytest.raises(ZeroDivisionError):
            await in_thread(lambda: 1 / 0)
        task = asyncio.create_task(in_thread(lambda: time.sleep(0.2)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)

    run(main())


def test_a_machine_is_built_once_and_forked():
    assert ringzero.AsyncMachine is AsyncMachine

    async def main():
        vm = AsyncMachine(memory="32M", engine=FakeEngine())
        with pytest.raises(RuntimeError, match="async with"):
            _ = vm.machine
        async with vm:
            vm.machine.memory[0:4] = b"same"
            children = await vm.fork(3)
            assert [bytes(c.machine.memory[0:4]) for c in children] == [b"same"] * 3
            await asyncio.gather(*(child.stop() for child in children))
        with pytest.raises(InvalidValueError):
            await vm.fork()

    run(main())


@pytest.mark.engine
@pytest.mark.boot
def test_commands_in_many_guests():
    async def main():
        try:
            vm = await AsyncMachine(image="micro", memory="256M", engine="soft").__aenter__()
        except HostError as fault:
            pytest.skip(f"needs Debian packages: {fault.message}")
        async with vm:
            await vm.run("echo 7 >/tmp/seven")
            children = await vm.fork(4)
            results = await asyncio.gather(
                *(c.run("echo $(($(cat) * $(cat /tmp/seven)))", input=b"%d" % n)
                  for n, c in enumerate(children))
            )  # fmt: skip
            assert [r.stdout for r in results] == [b"%d\n" % (7 * n) for n in range(4)]
            with pytest.raises(TimeoutExpiredError):
                await children[0].run("sleep 100", timeout=0.3)
            task = asyncio.create_task(children[1].run("sleep 100"))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for child in children[:2]:
                assert (await child.run("echo there", timeout=30)).stdout == b"there\n"
            await asyncio.gather(*(child.stop() for child in children))

    run(main())
