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
from ringzero.core.state import from_tree, to_tree
from ringzero.engine.contract import Vm
from ringzero.errors import StateError
from ringzero.isa.x86.state import CpuState
from ringzero.records import record
from ringzero.vm.agent import AgentState
from ringzero.vm.channels import ChannelsState
from ringzero.vm.runloop import VcpuThread

# Raised by one whenever a saved tree of before can no longer be read.
VERSION = 2
NANOSECONDS = 1_000_000_000
MASK_64 = (1 << 64) - 1


@record
class MachineState:
    """`tree` is JSON-ready: version, devices by name, vCPUs in order, the engine's part.

    Under "agent" it holds an AgentLink, where the machine has an agent.
    """

    tree: dict[str, Any]

    def advanced(self, nanoseconds: int, tsc_hz: int) -> MachineState:
        """Return the state with its clocks moved on, as if the guest had stood still for so long.

        Time-stamp counters and what is derived from them (the paravirtual clock, timers) move
        together; the guest's RTC follows the host's clock anyway. Raises StateError.
        """
        ticks = nanoseconds * tsc_hz // NANOSECONDS
        cpus = self.tree.get("cpus")
        try:
            moved = [{**cpu, "tsc": cpu["tsc"] + ticks & MASK_64} for cpu in cpus or ()]
            engine = self.tree.get("engine")
            if engine is not None:
                engine = {**engine, "clock": engine["clock"] + nanoseconds}
        except (TypeError, KeyError) as fault:
            raise StateError("the saved machine has no clock") from fault
        return MachineState({**self.tree, "cpus": moved, "engine": engine})


@record
class AgentLink:
    """The host's end of the guest's agent, and what is between the two."""

    agent: AgentState
    channels: ChannelsState


def save_parts(board: Board, threads: Sequence[VcpuThread], vm: Vm) -> MachineState:
    """Return the state of a machine that stands still."""
    return MachineState(
        {
            "version": VERSION,
            "devices": {name: to_tree(part.save()) for name, part in board.stateful()},
            "cpus": [to_tree(thread.get_state()) for thread in threads],
            "engine": vm.save(),
        }
    )


def restore_parts(state: MachineState, board: Board, threads: Sequence[VcpuThread], vm: Vm) -> None:
    """Put a state back into a machine of the same configuration. Raises StateError."""
    tree = state.tree
    if not isinstance(tree, dict) or tree.get("version") != VERSION:
        raise StateError("the saved machine is of another version", expected=VERSION)
    devices, cpus = tree.get("devices"), tree.get("cpus")
    parts = dict(board.stateful())
    if not isinstance(devices, dict) or set(devices) != set(parts):
        odd = sorted(set(devices or ()) ^ set(parts))
        raise StateError(f"the saved machine has other devices: {', '.join(map(str, odd))}")
    if not isinstance(cpus, list) or len(cpus) != len(threads):
        raise StateError("the saved machine has another number of vCPUs", expected=len(threads))
    # All of the tree is read before any of it is used.
    cpu_states = [from_tree(CpuState, cpu, f"cpus[{n}]") for n, cpu in enumerate(cpus)]
    device_states = {
        name: from_tree(part.state_type, devices[name], f"devices.{name}")
        for name, part in parts.items()
    }
    vm.restore(tree.get("engine"))
    for thread, cpu in zip(threads, cpu_states, strict=True):
        thread.set_state(cpu)
    for name, part in parts.items():
        part.restore(device_states[name])
