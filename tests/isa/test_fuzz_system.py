"""A hostile guest: random privileged instructions from random machine states.

Nothing is expected but that the engine survives: each run ends in an exit, and
the vCPU can be given a good state afterwards. A crash of native code ends the test run.
"""

import os
import random
import struct

import pytest

from ringzero.isa import execution
from ringzero.isa.x86 import cpu as x86
from tests.isa.guest import (
    CODE,
    DATA,
    GDT,
    HANDLERS,
    IDT,
    KERNEL_STACK,
    LDT,
    PML4,
    PT,
    SIZE,
    TSS,
    USER_CODE,
    Guest,
    assemble,
)

pytestmark = pytest.mark.engine

ROUNDS = 300 * int(os.environ.get("RINGZERO_FUZZ", "1"))

OPCODES = [
    *("0f00", "0f01", "0f02", "0f03", "0f05", "0f06", "0f07", "0f20", "0f21", "0f22", "0f23"),
    *("0f30", "0f31", "0f32", "0f33", "0f34", "0f35", "0fa0", "0fa1", "0fa2", "0fa8", "0fa9"),
    *("0fb2", "0fb4", "0fb5", "f30fae", "660f3882", "6c", "6d", "6e", "6f", "8c", "8e", "9a"),
    *("9c", "9d", "c4", "c5", "ca", "cb", "cc", "cd", "ce", "cf", "e4", "e5", "e6", "e7", "ea"),
    *("ec", "ed", "ee", "ef", "f1", "f4", "fa", "fb", "fc", "fd", "ff", "63", "06", "07", "17"),
]  # fmt: skip
PLACES = (0, 1, 8, CODE, DATA, GDT, IDT, TSS, LDT, PML4, KERNEL_STACK, USER_CODE, SIZE - 1,
          SIZE, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000, (1 << 64) - 1, 0xFFFF_FFFF)  # fmt: skip
MSRS = (0x10, 0x1B, 0x3B, 0x174, 0x277, 0x2FF, 0xC0000080, 0xC0000081, 0xC0000100, 0xC0000102)


def random_value(rng):
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(PLACES)
    if kind == 1:
        return rng.getrandbits(64)
    if kind == 2:
        return rng.choice(MSRS)
    return rng.getrandbits(rng.choice((3, 8, 16, 32)))


def random_code(rng):
    code = b""
    for _ in range(8):
        code += bytes(rng.sample((0x66, 0x67, 0xF2, 0xF3, 0xF0, 0x48, 0x44), rng.randrange(2)))
        code += bytes.fromhex(rng.choice(OPCODES)) + rng.randbytes(rng.choice((1, 1, 2, 5)))
    return code


def scramble(guest, rng):
    """Replace parts of tables, segments and control state by random ones."""
    for table, size in ((GDT, 0x100), (IDT, 0x200), (TSS, 0x68), (LDT, 0x40)):
        for _ in range(rng.randrange(4)):
            guest.q(table + rng.randrange(size) // 8 * 8, rng.getrandbits(64))
    cpu = guest.cpu
    for number in range(16):
        cpu.regs[number] = random_value(rng)
    if rng.random() < 0.7:
        cpu.regs[x86.RSP] = KERNEL_STACK
    for number in range(8):
        if rng.random() < 0.2:
            segment = cpu.seg[number]
            segment.selector = rng.getrandbits(16)
            segment.base = rng.choice(PLACES)
            segment.limit = rng.choice((0, 0xFFFF, 0xFFFFFFFF, 0x67))
            segment.attributes = rng.getrandbits(16) & 0xF0FF
    for name, span in (("gdt_limit", 16), ("idt_limit", 16)):
        if rng.random() < 0.2:
            setattr(cpu, name, rng.getrandbits(span))
    for name in ("gdt_base", "idt_base", "cr3", "lstar", "star", "sysenter_cs", "sfmask"):
        if rng.random() < 0.1:
            setattr(cpu, name, random_value(rng))
    cpu.rflags = rng.getrandbits(22) & ~(x86.VM | x86.ARITHMETIC_FLAGS) | 2
    if rng.random() < 0.3:
        cpu.dr[7] = rng.getrandbits(32)
        cpu.dr[rng.randrange(4)] = rng.choice(PLACES)
    if rng.random() < 0.3:
        cpu.inject = rng.randrange(16, 256) + 1


def run_some(guest, rng):
    """Run at most a few hundred instructions, answering exits; return the kinds of exit."""
    cpu = guest.cpu
    kinds = set()
    guest.vcpu.kick()
    guest.vcpu.run()  # empties the TLB, as set_state asked
    cpu.slice = cpu.budget = 60
    for _ in range(20):
        cpu.deadline = cpu.counter_offset  # long past: it stops when the slice is spent
        kind = guest.vcpu._enter(guest.vcpu.address)
        kinds.add(kind)
        if kind in (execution.EXIT_TIMER, execution.EXIT_SHUTDOWN, execution.EXIT_HALT):
            break
        guest.vcpu.complete(rng.choice((0, rng.getrandbits(64), None)))
    return kinds


@pytest.mark.parametrize("part", range(4))
def test_survives(part):
    rng = random.Random(part)
    guest = Guest()
    # Handlers are random code too.
    guest.q(PT + (HANDLERS >> 12) * 8, HANDLERS | 7)
    guest.write(HANDLERS, b"".join(random_code(rng)[:16] for _ in range(32)))
    clean = guest.memory.read(0, SIZE)
    good = guest.state
    endings = set()
    for _ in range(ROUNDS // 4):
        guest.write(0, clean)
        guest.state = good
        if part & 1:
            guest.become_user()
        guest.vcpu.set_state(guest.state)
        scramble(guest, rng)
        guest.write(USER_CODE if part & 1 else CODE, random_code(rng))
        endings.update(run_some(guest, rng))
    assert {execution.EXIT_TIMER, execution.EXIT_SHUTDOWN, x86.EXIT_PORT_READ} <= endings
    assert guest.cpu.count_exceptions > ROUNDS
    # The same vCPU still works.
    guest.write(0, clean)
    guest.state = good
    end = guest.run(assemble("mov eax, 1; hlt"))
    assert end.vector is None and end.reg(x86.RAX) == 1


def test_random_frames_for_iret():
    rng = random.Random(7)
    guest = Guest()
    clean = guest.memory.read(0, SIZE)
    for _ in range(ROUNDS):
        guest.write(0, clean)
        frame = [random_value(rng) if rng.random() < 0.3 else word
                 for word in (USER_CODE, 0x33, 0x202, 0x90000, 0x2B)]  # fmt: skip
        guest.write(KERNEL_STACK - 40, struct.pack("<5Q", *frame))
        guest.write(USER_CODE, b"\x0f\x0b")
        end = guest.run(b"\x48\xcf", rsp=KERNEL_STACK - 40)
        assert end.vector is None or end.vector in (-1, 6, 10, 11, 12, 13, 14)
