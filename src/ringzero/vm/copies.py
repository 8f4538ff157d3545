"""A machine's state as a value, and what becomes of it: seeds, copies, and going back.

A seed is taken from an assembly that stands still; an assembly grows from it, or
becomes what it holds. Both then are somebody else than the original: their first
instruction comes after an `Introduction`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ringzero.core.clocks import read_together
from ringzero.core.state import from_part
from ringzero.engine.contract import Engine
from ringzero.errors import StateError
from ringzero.records import record
from ringzero.vm.build import Assembly, assemble
from ringzero.vm.guest.identity import Identity
from ringzero.vm.seed import Seed
from ringzero.vm.state import AgentLink, MachineState, ProcessorKind, restore_parts, save_parts

if TYPE_CHECKING:
    from ringzero.disk.instant import InstantDisk

# The longest time, in nanoseconds, by which a clone's time-stamp counter is moved on. Linux
# lets real-time threads run 0.95 s of a second and logs it when one seems to have had more, and
# clones of clones may follow each other within that second; and it makes up for every tick that
# it missed: 1.4 s of work for 20 minutes, minutes for days. Beyond this, its monotonic time goes
# on where it stood and only the wall clock is set.
LONGEST_STEP = 100_000_000
# How long a rehearsal is waited for, in seconds; it takes some milliseconds.
_REHEARSAL = 0.1


@record
class Introduction:
    """What the guest of a copy is told before its vCPUs run: who it is, and how late.

    `clock_ahead` is by how much its wall clock, once it is set, is ahead of the host's, in
    nanoseconds; None leaves the clock alone.
    """

    identity: Identity
    clock_ahead: int | None

    def tell(self, parts: Assembly) -> None:
        """Tell the guest of `parts`; nothing to do where it has no agent."""
        guest = parts.guest
        if guest is None:
            return
        ahead = self.clock_ahead

        def introduce() -> None:
            hertz = parts.vm.counter_hz
            counter, now = read_together(parts.vm.read_counter, hertz, time.time_ns)
            clock = None if ahead is None else now + ahead
            macs = [net.mac for net in parts.config.nets if net.mac is not None]
            guest.introduce(self.identity.record(clock, macs, (counter, hertz)))

        # A guest that takes it late, on a host that is busy, sets its clock to what was then.
        guest.agent.await_adoption(None if ahead is None else introduce)
        introduce()


# ---- state ----------------------------------------------------------------


def save(parts: Assembly) -> MachineState:
    """Return the state of everything but memory and disks; the machine stands still."""
    kind = {"processor": parts.processor}
    guest = parts.guest
    if guest is None:
        state = save_parts(parts.board, parts.threads, parts.vm)
        return MachineState({**state.parts, **kind})
    with guest.channels.still():
        state = save_parts(parts.board, parts.threads, parts.vm)
        agent = AgentLink(guest.agent.save(), guest.channels.save())
    return MachineState({**state.parts, **kind, "agent": agent})


def restore(parts: Assembly, state: MachineState, elapsed: int = 0) -> None:
    """Put a saved state back, instead of booting, `elapsed` nanoseconds later.

    The machine stands still. Raises StateError.
    """
    guest = parts.guest
    saved = state.parts if isinstance(state.parts, dict) else {}
    agent = saved.get("agent")
    if (agent is None) != (guest is None):
        raise StateError("only one of the saved machine and this one has an agent")
    from_part(ProcessorKind, saved.get("processor"), "processor").check(parts.processor)
    link = from_part(AgentLink, agent, "agent") if agent is not None else None
    restore_parts(state, parts.board, parts.threads, parts.vm, elapsed)
    if link is not None and guest is not None:
        with guest.channels.still():
            guest.channels.restore(link.channels)
            guest.agent.restore(link.agent)
    parts.booted = True


def rehearse(parts: Assembly) -> bool:
    """Have a guest that runs do once what each copy of it does first: take an identity.

    It keeps its own but for new random numbers. What it runs for it is translated, and known to
    its jump caches, which copies take over. False where it is at work or takes no commands yet, and
    where nothing is translated; then it was asked for nothing.
    """
    guest, translating = parts.guest, parts.vm.translate_at_once()
    if translating is None or guest is None:
        return False
    if not guest.agent.idle or not guest.agent.listens():
        return False
    with translating:
        parts.board.repeat_generation()
        # What the kernel does for the event it has done by the second one, not by the first.
        for _ in range(2):
            Introduction(Identity(now=None), None).tell(parts)
            guest.agent.wait_adopted(_REHEARSAL)
    return True


# ---- seeds ----------------------------------------------------------------


def take_seed(parts: Assembly, clones: int = 1) -> Seed:
    """Return what the machine, which stands still, is now, for so many clones or another number.

    Raises StateError, HostError.
    """
    with contextlib.ExitStack() as undo:
        parts.boot()
        state = save(parts)
        taken = time.time_ns()
        memory = parts.memory.host.freeze(clones=clones)
        undo.callback(memory.close)
        disks = []
        for disk in parts.disks:
            instant = disk.instant()
            undo.callback(instant.close)
            disks.append(instant)
        code = parts.vm.share()
        undo.pop_all()
    return Seed(parts.config, state, memory, disks, taken, code)


def boot_seed(parts: Assembly, disks: Sequence[InstantDisk]) -> Seed:
    """Return what a machine of the same kind is before its first instruction, with such disks."""
    identity = Identity()
    fresh = assemble(identity.adopt(parts.config), parts.engine, identity=identity, disks=disks)
    try:
        return take_seed(fresh)
    finally:
        fresh.close()


def grow(
    seed: Seed, identity: Identity, engine: Engine | None = None
) -> tuple[Assembly, Introduction]:
    """Return a copy of what `seed` was taken from; raises as `assemble` does, and StateError."""
    parts = assemble(
        identity.adopt(seed.config),
        engine,
        identity=identity,
        content=seed.memory,
        disks=seed.disks,
        code=seed.code,
    )
    with contextlib.ExitStack() as undo:
        undo.callback(parts.close)
        introduction = become(parts, seed, identity)
        undo.pop_all()
    return parts, introduction


def take_back(parts: Assembly, seed: Seed, identity: Identity) -> Introduction:
    """Make a machine, which stands still, what `seed` holds, its disks excepted."""
    for thread in parts.threads:
        # An access that a vCPU has begun is ended before it is another's.
        thread.get_state()
    parts.memory.become(seed.memory)
    parts.identity = identity
    return become(parts, seed, identity)


def resume(parts: Assembly, seed: Seed) -> Introduction:
    """Have a machine that has not begun go on from `seed`, under the identity that it has.

    Commands and the console's size that it was given are kept for its guest. Raises StateError
    where the seed does not fit, HostError; then the machine is as it was and can be booted.
    """
    saved = seed.state.parts if isinstance(seed.state.parts, dict) else {}
    kind = from_part(ProcessorKind, saved.get("processor"), "processor")
    kind.check(parts.processor)
    waiting = parts.guest.agent.kept_waiting() if parts.guest else contextlib.nullcontext()
    with waiting:
        try:
            introduction = take_back(parts, seed, parts.identity)
        except BaseException:
            parts.power_on()
            raise
    parts.lines.console.tell_size()
    return introduction


def become(parts: Assembly, seed: Seed, identity: Identity) -> Introduction:
    """Take over the seed's state, as somebody else; memory and disks hold theirs already."""
    now, elapsed, clock_ahead = identity.now, 0, None
    stood_still = 0 if now is None else max(0, now - seed.taken)
    if stood_still <= LONGEST_STEP:
        elapsed = stood_still
    elif now is not None:
        # To read a snapshot takes seconds on a busy host.
        clock_ahead = now - identity.made
    restore(parts, seed.state, elapsed)
    parts.board.renew_generation(identity.generation)
    parts.devices.renew()
    return Introduction(identity, clock_ahead)
