"""Measures whether KVM runs kernel-mode code at a useful speed here.

On some clouds /dev/kvm opens and answers every ioctl, but code at kernel
addresses is emulated instruction by instruction, so that Linux never comes up.
Only running such code tells.
"""

from __future__ import annotations

import struct
import time

from ringzero.core.memory import GuestMemory
from ringzero.engine.exits import Halt
from ringzero.engine.kvm.vcpu import KvmVcpu
from ringzero.engine.kvm.vm import KvmVm
from ringzero.errors import EngineError
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.x86 import state as x86
from ringzero.isa.x86.state import CpuState, Table, flat_segment

# Where Linux runs.
KERNEL_BASE = 0xFFFFFFFF80000000
# Two instructions per round.
SHORT_ROUNDS, MEDIUM_ROUNDS, LONG_ROUNDS = 2_000, 20_000, 100_000
TRIES = 3
# Below this a Linux boot (about 10^9 instructions) takes over 20 s. Real KVM gives thousands,
# KVM in a machine that is itself emulated some hundreds, the emulating kind about one.
USEFUL_MIPS = 50
# The short loop alone decides when it shows this much. Otherwise the cost of entering the guest
# may hide the truth, above all on a loaded host, and what longer loops take beyond it tells:
# the medium one where it shows no more than that of the emulating kind, the long one else.
HOPELESS_MIPS, PLENTY_MIPS = 10, 500
# No processor is quicker: more is the clock's noise.
MOST_MIPS = 10_000
_CODE = 0x4000
# 1: dec rcx; jnz 1b; hlt
_LOOP = bytes.fromhex("48ffc9 75fb f4")


def long_mode_state(entry: int, tables: int) -> CpuState:
    """Return a vCPU in 64-bit ring 0 at `entry`, with page tables at `tables`."""
    data = flat_segment(0x10, code=False)
    return CpuState(
        rip=entry,
        cs=flat_segment(0x08, code=True),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=x86.Segment(0, 0, 0xFFFF, 0x8B),
        gdtr=Table(0, 0),
        idtr=Table(0, 0),
        cr0=x86.CR0_PE | x86.CR0_ET | x86.CR0_NE | x86.CR0_WP | x86.CR0_PG,
        cr3=tables,
        cr4=x86.CR4_PAE,
        efer=x86.EFER_LME | x86.EFER_LMA,
    )


def write_kernel_tables(memory: GuestMemory, tables: int) -> None:
    """Map the first 1 GiB of guest memory at 0 and at KERNEL_BASE, by 2 MiB pages."""
    present_write = 3
    directory, pages = tables + 0x1000, tables + 0x2000
    memory.write_int(tables, 8, directory | present_write)
    memory.write_int(tables + 8 * 511, 8, directory | present_write)
    memory.write_int(directory, 8, pages | present_write)
    memory.write_int(directory + 8 * 510, 8, pages | present_write)
    large = 1 << 7
    memory.write(
        pages, struct.pack("<512Q", *(n << 21 | large | present_write for n in range(512)))
    )


def measure_mips(system: kvmfd.KvmSystem) -> float:
    """Return how many million kernel-mode instructions a second KVM executes.

    Takes some milliseconds, and a tenth of a second where the answer is "one".
    Raises EngineError or HostError where KVM fails.
    """
    memory = GuestMemory([(0, 0x10000)])
    vm = KvmVm(system, memory, (), 1_000_000_000, False)
    try:
        write_kernel_tables(memory, 0x1000)
        memory.write(_CODE, _LOOP)
        vcpu = vm.create_vcpu(0, _NoInterrupts())
        short = _best_time(vcpu, SHORT_ROUNDS)
        mips = 2 * SHORT_ROUNDS / short / 1e6
        if mips >= PLENTY_MIPS:
            return mips
        for rounds in (MEDIUM_ROUNDS, LONG_ROUNDS):
            beyond = max(_best_time(vcpu, rounds) - short, 1e-9)
            mips = min(2 * (rounds - SHORT_ROUNDS) / beyond / 1e6, MOST_MIPS)
            if mips < HOPELESS_MIPS:
                break
        return mips
    finally:
        vm.close()
        memory.close()


def _best_time(vcpu: KvmVcpu, rounds: int) -> float:
    return min(_time_loop(vcpu, rounds) for _ in range(TRIES))


def _time_loop(vcpu: KvmVcpu, rounds: int) -> float:
    """Return how long the loop takes, in seconds."""
    vcpu.set_state(long_mode_state(KERNEL_BASE + _CODE, 0x1000).with_gpr(rcx=rounds))
    start = time.perf_counter()
    found = vcpu.run()
    taken = time.perf_counter() - start
    if not isinstance(found, Halt):
        raise EngineError(f"KVM's probe ended with {found}")
    return taken


class _NoInterrupts:
    """A local APIC that never interrupts."""

    def pending(self) -> bool:
        return False

    def acknowledge(self) -> int | None:
        return None

    def nmi_pending(self) -> bool:
        return False

    def take_nmi(self) -> bool:
        return False

    def deadline(self) -> int | None:
        return None

    def expire(self) -> None:
        """Never called: there is no deadline."""

    def get_task_priority(self) -> int:
        return 0

    def set_task_priority(self, value: int) -> None:
        """The probe's code does not touch CR8."""

    def on_change(self, wake: object) -> None:
        """Nothing ever changes."""
