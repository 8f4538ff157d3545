"""`AsyncMachine`: a machine for programs built on asyncio.

    async with ringzero.AsyncMachine(image="micro") as vm:
        await vm.run("prepare")
        children = await vm.fork(8)
        results = await asyncio.gather(*(child.run("work") for child in children))

Every method is `Machine`'s of the same name, on a thread of its own: any number may be
awaited at once, and none keeps the event loop waiting. What has no asynchronous form is
found at `machine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar, Unpack, overload

from ringzero.api.command import CommandResult, invocation
from ringzero.vm.exit import Exit
from ringzero.vm.guest.execution import Execution
from ringzero.vm.machine import Machine

if TYPE_CHECKING:
    from ringzero.api.options import RunOptions
    from ringzero.config.fields import MachineArguments
    from ringzero.config.machine import MachineConfig
    from ringzero.vm.saved.snapshot import Snapshot

T = TypeVar("T")


async def in_thread(action: Callable[[], T]) -> T:
    """Return what `action` returns, from a thread of its own; a cancelled one still ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, failure: BaseException | None) -> None:
        if future.cancelled():
            return
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result, failure = None, None
        try:
            result = action()
        except BaseException as fault:
            failure = fault
        # A loop that has ended has nobody who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="await", daemon=True).start()
    return await future


class AsyncMachine:
    """A `Machine` whose methods are awaited; made from the same arguments, or around one.

    It is built when the `async with` block is entered, or with the first method.
    """

    def __init__(
        self,
        machine: Machine | MachineConfig | None = None,
        **fields: Unpack[MachineArguments],
    ) -> None:
        self._made = machine if isinstance(machine, Machine) else None
        self._config = None if isinstance(machine, Machine) else machine
        self._fields = fields
        self._making = asyncio.Lock()

    @property
    def machine(self) -> Machine:
        """The machine itself. Raises RuntimeError before it was built."""
        if self._made is None:
            raise RuntimeError("the machine is built by `async with`, or by its first method")
        return self._made

    async def _get(self) -> Machine:
        async with self._making:
            if self._made is None:
                self._made = await in_thread(lambda: Machine(self._config, **self._fields))
            return self._made

    async def __aenter__(self) -> Self:
        await self._get()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Boot, and let the guest run."""
        await in_thread((await self._get()).start)

    async def pause(self) -> None:
        """Stop the vCPUs and let requests in flight end."""
        await in_thread((await self._get()).pause)

    async def resume(self) -> None:
        """Go on after `pause`."""
        await in_thread((await self._get()).resume)

    async def stop(self) -> None:
        """End the guest and free everything."""
        if self._made is not None:
            # Also when the caller is being cancelled.
            await asyncio.shield(in_thread(self._made.stop))

    async def wait(self, timeout: float | None = None) -> Exit | None:
        """Wait for the end of the run."""
        machine = await self._get()
        return await in_thread(lambda: machine.wait(timeout))

    @overload
    async def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes]: ...

    @overload
    async def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: Literal[True],
        **options: Unpack[RunOptions],
    ) -> CommandResult[str]: ...

    @overload
    async def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: bool,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes] | CommandResult[str]: ...

    async def run(
        self,
        command: str | Sequence[str | bytes],
        *,
        text: bool = False,
        **options: Unpack[RunOptions],
    ) -> CommandResult[bytes] | CommandResult[str]:
        """Run a command in the guest. It is killed when the caller is cancelled."""
        asked = invocation(command, text=text, options=options)
        machine = await self._get()
        await in_thread(machine.start)
        execution = Execution(machine.agent, asked)
        try:
            return await in_thread(execution.finish)
        except asyncio.CancelledError:
            execution.kill()
            raise

    async def copy_in(
        self,
        source: str | Path | Sequence[str | Path],
        target: str,
        *,
        follow: bool = False,
        owners: bool = False,
    ) -> None:
        """Copy files and folders of the host to `target` of the guest."""
        machine = await self._get()
        await in_thread(lambda: machine.copy_in(source, target, follow=follow, owners=owners))

    async def copy_out(
        self, source: str, target: str | Path, *, follow: bool = False, owners: bool = False
    ) -> None:
        """Copy a file or folder of the guest to `target` of the host."""
        machine = await self._get()
        await in_thread(lambda: machine.copy_out(source, target, follow=follow, owners=owners))

    async def fork(self, count: int = 1, *, start: bool = False) -> list[AsyncMachine]:
        """Return copies of the machine as it is now."""
        machine = await self._get()
        children = await in_thread(lambda: machine.fork(count, start=start))
        return [AsyncMachine(child) for child in children]

    async def snapshot(self, name: str, *, memory: bool = True, compress: bool = False) -> Snapshot:
        """Save the machine as it is now under a name."""
        machine = await self._get()
        return await in_thread(lambda: machine.snapshot(name, memory=memory, compress=compress))

    async def revert(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, in place."""
        machine = await self._get()
        await in_thread(lambda: machine.revert(snapshot))
