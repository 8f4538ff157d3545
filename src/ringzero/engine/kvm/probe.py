"""Measures whether KVM runs kernel-mode code at a useful speed here.

On some clouds /dev/kvm opens and answers every ioctl, but code at kernel
addresses is emulated instruction by instruction, so that Linux never comes up.
Only running such code tells.
"""

from __future__ import annotations

import struct
import time

from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import Halt, Vcpu
from ringzero.engine.kvm.vm import KvmVm
from ringzero.errors import EngineError
from ringzero.host import kvm
from ringzero.isa.x86 import state as x86
from ringzero.isa.x86.state import CpuState, Table, flat_segment

# Where Linux runs.
KERNEL_BASE = 0xFFFFFFFF80000000
# Two instructions per round.
SHORT_ROUNDS, LONG_ROUNDS = 2_000, 100_000
TRIES = 3
# Below this a Linux boot (about 10^9 instructions) takes over 20 s. Real KVM gives thousands,
# KVM in a machine that is itself emulated some hundreds, the emulating kind about one.
USEFUL_MIPS = 50
# The short loop decides when it shows less or more than these; in between, the cost of
# entering the guest may hide the truth, and the long loop tells.
HOPELESS_MIPS, PLENTY_MIPS = 3, 500
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


def measure_mips(system: kvm.KvmSystem) -> float:
    """Return how many million kernel-mode instructions a second KVM executes.

    Takes a few milliseconds even where the answer is "one". Raises EngineError
    or HostError where KVM fails.
    """
    memory = GuestMemory([(0, 0x10000)])
    vm = KvmVm(system, memory, (), 1_000_000_000, False)
    try:
        write_kernel_tables(memory, 0x1000)
        memory.write(_CODE, _LOOP)
        vcpu = vm.create_vcpu(0, _NoInterrupts())
        mips = max(_time_loop(vcpu, SHORT_ROUNDS) for _ in range(TRIES))
        if HOPELESS_MIPS < mips < PLENTY_MIPS:
            mips = max(_time_loop(vcpu, LONG_ROUNDS) for _ in range(TRIES))
        return mips
    finally:
        vm.close()
        memory.close()


def _time_loop(vcpu: Vcpu, rounds: int) -> float:
    vcpu.set_state(long_mode_state(KERNEL_BASE + _CODE, 0x1000).with_gpr(rcx=rounds))
    start = time.perf_counter()
    found = vcpu.run()
    taken = time.perf_counter() - start
    if not isinstance(found, Halt):
        raise EngineError(f"KVM's probe ended with {found}")
    return 2 * rounds / taken / 1e6


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
