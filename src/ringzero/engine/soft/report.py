"""What a user is told when a guest cannot go on."""

from __future__ import annotations

from typing import Any

from ringzero.core.memory import GuestMemory
from ringzero.isa.x86.cpu import UNKNOWN_KINDS
from ringzero.isa.x86.state import GPR_NAMES


def unknown_instructions(cpu: Any) -> dict[str, int]:
    """Return how often each encoding raised #UD that no instruction has, by its bytes."""
    found = {}
    for n in range(UNKNOWN_KINDS):
        record = cpu.unknown[n]
        if record.length:
            code = record.code.to_bytes(8, "little")[: record.length]
            found[code.hex(" ")] = int(record.count)
    return found


def describe_shutdown(cpu: Any, memory: GuestMemory) -> str:
    """Return the registers and the last code bytes of a vCPU that shut down."""
    lines = [f"triple fault at RIP {cpu.rip:#x}, last exception {cpu.fault_vector}"]
    if cpu.fault_has_code:
        lines[0] += f" (error code {cpu.fault_code:#x})"
    values = [f"{name}={cpu.regs[n]:#018x}" for n, name in enumerate(GPR_NAMES)]
    lines += [" ".join(values[n : n + 4]) for n in range(0, 16, 4)]
    lines.append(
        f"cr0={cpu.cr0:#x} cr2={cpu.cr2:#x} cr3={cpu.cr3:#x} cr4={cpu.cr4:#x} "
        f"efer={cpu.efer:#x} cpl={cpu.cpl}"
    )
    unknown = unknown_instructions(cpu)
    if unknown:
        lines.append("unknown instructions: " + ", ".join(unknown))
    return "\n".join(lines)
