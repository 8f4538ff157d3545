"""A machine's state as one tree, and the order in which it is taken and put back.

Taken from a machine that stands still (`Machine.pause` has stopped the vCPUs,
then served the engine's doorbells, then let the devices finish): devices first, then
vCPUs, then what the engine keeps for the whole machine. Put back in the
opposite direction of dependence: the engine, the vCPUs, the devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ringzero.board.contract import Board
from ringzero.core.state import from_part, to_tree
from ringzero.devices.contract import Device
from ringzero.devices.virtio.device import VirtioDevice
from ringzero.engine.contract import Vm
from ringzero.errors import StateError
from ringzero.isa.contract import Identification
from ringzero.records import field_names, optional_fields, record
from ringzero.vm.guest.channels import ChannelsState
from ringzero.vm.guest.protocol import AgentState
from ringzero.vm.runloop import VcpuThread

# Raised by one whenever a saved tree of before can no longer be read.
VERSION = 3
# How far, in parts of a million, the frequencies of two hosts' counters may be apart: what
# Linux guests take for a drift of their clock, and time synchronization makes good.
COUNTER_TOLERANCE = 250
NANOSECONDS = 1_000_000_000


@record
class MachineState:
    """`parts`: version, architecture, devices by name, vCPUs in order, the engine's.

    Under "processor" it holds a ProcessorKind; under "agent" an AgentLink, where the machine
    has an agent. Each is the part's frozen state, as it was saved, or plain data of it, as it
    was read from a file: a copy in the same process needs no plain data.
    """

    parts: dict[str, Any]

    @property
    def tree(self) -> dict[str, Any]:
        """All of it as JSON-ready data; raises StateError for what has no such form."""
        tree: dict[str, Any] = to_tree(self.parts)
        return tree


@record
class ProcessorKind:
    """What a guest has found out of its processors and relies on: features, the counter's hertz."""

    features: tuple[str, ...]
    counter_hz: int

    @classmethod
    def upgrade(cls, old: dict[str, Any]) -> dict[str, Any]:
        """Bring up what was saved when there was one architecture, whose name the counter had."""
        if "tsc_hz" in old and "counter_hz" not in old:
            old["counter_hz"] = old.pop("tsc_hz")
        return old

    @classmethod
    def of(cls, processors: Identification, counter_hz: int) -> ProcessorKind:
        """Return the kind that a guest sees by this identification."""
        return cls(tuple(sorted(processors.features)), counter_hz)

    def check(self, here: ProcessorKind) -> None:
        """Raise StateError unless a guest of this kind can go on `here`."""
        missing = sorted(set(self.features) - set(here.features))
        if missing:
            raise StateError(
                f"the saved machine's processor has what this one has not: {', '.join(missing)}",
                hint="restore it on the engine and by the version of ringzero that saved it",
            )
        if abs(self.counter_hz - here.counter_hz) * 1_000_000 > here.counter_hz * COUNTER_TOLERANCE:
            raise StateError(
                "the saved machine's counter has another frequency",
                hint="its guest's clock would go wrong; restore it on the host that saved it",
                expected=self.counter_hz,
                seen=here.counter_hz,
            )


@record
class AgentLink:
    """The host's end of the guest's agent, and what is between the two."""

    agent: AgentState
    channels: ChannelsState


def save_parts(board: Board, threads: Sequence[VcpuThread], vm: Vm[Any]) -> MachineState:
    """Return the state of a machine that stands still."""
    return MachineState(
        {
            "version": VERSION,
            "architecture": board.architecture.name,
            "devices": {name: part.save() for name, part in board.stateful()},
            "cpus": [thread.get_state() for thread in threads],
            "engine": vm.save(),
        }
    )


def restore_parts(
    state: MachineState,
    board: Board,
    threads: Sequence[VcpuThread],
    vm: Vm[Any],
    elapsed: int = 0,
) -> None:
    """Put a state back into a machine of the same configuration. Raises StateError.

    Its clocks are moved on by `elapsed` nanoseconds, as if the guest had stood still for so
    long: counters and what is derived from them (a paravirtual clock, timers) move together;
    the guest's RTC follows the host's clock anyway.
    """
    tree, architecture = state.parts, board.architecture
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        raise StateError("the saved machine is of another version", expected=VERSION)
    # Version 3 was saved without it, by the first architecture only.
    if tree.get("architecture", architecture.name) != architecture.name:
        raise StateError("the saved machine is of another architecture", expected=architecture.name)
    devices, cpus = tree.get("devices"), tree.get("cpus")
    parts = dict(board.stateful())
    devices = devices if isinstance(devices, dict) else {}
    added = {name for name in parts.keys() - devices.keys() if _may_be_absent(parts[name])}
    odd = sorted(map(str, (devices.keys() ^ parts.keys()) - added))
    if odd:
        raise StateError(f"the saved machine has other devices: {', '.join(odd)}")
    if not isinstance(cpus, list) or len(cpus) != len(threads):
        raise StateError("the saved machine has another number of vCPUs", expected=len(threads))
    # All of it is read before any of it is used.
    ticks = elapsed * vm.counter_hz // NANOSECONDS
    cpu_states = [
        architecture.advance(from_part(architecture.state_type, cpu, f"cpus[{n}]"), ticks)
        for n, cpu in enumerate(cpus)
    ]
    device_states = {
        name: from_part(part.state_type, devices[name], f"devices.{name}")
        for name, part in parts.items()
        if name not in added
    }
    vm.restore(tree.get("engine"), elapsed)
    for thread, cpu in zip(threads, cpu_states, strict=True):
        thread.set_state(cpu)
    for name, part in parts.items():
        if name in added:
            part.reset()
        else:
            part.restore(device_states[name])


def _may_be_absent(part: Device[Any] | VirtioDevice[Any]) -> bool:
    """Whether a board may have got this part since: its state has a default for every field.

    Such a part is as after power-on; a guest that never saw it does not miss more.
    """
    kind = part.state_type
    return optional_fields(kind) == set(field_names(kind))
