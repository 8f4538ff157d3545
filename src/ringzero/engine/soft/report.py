"""What a user is told when a guest cannot go on."""

from __future__ import annotations

from typing import Any

from ringzero.core.memory import GuestMemory
from ringzero.isa.x86.state import GPR_NAMES


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
    code = bytes(((cpu.unknown_bytes[n // 8]) >> (n % 8 * 8)) & 0xFF for n in range(16))
    if any(code):
        lines.append(f"last unknown instruction: {code.hex(' ')}")
    return "\n".join(lines)
