"""Random programs give the same final state on the software engine and on KVM."""

import os
import random
import threading
from dataclasses import replace

import pytest

from ringzero.engine import select
from ringzero.engine.contract import ENGINES, Usability
from ringzero.engine.exits import Kicked
from ringzero.isa.x86 import cpuid
from tests import chance
from tests.engine import guest as toolkit
from tests.engine.guest import long_mode
from tests.engine.programs import ADDRESS_MSRS, DATA, DATA_SIZE, Generator

pytestmark = [pytest.mark.kvm, pytest.mark.engine]
PROGRAMS = 40 * int(os.environ.get("RINGZERO_FUZZ", "1"))
LENGTH = 60
AUXILIARY_CARRY = 1 << 4
# Not compared: a KVM that emulates ring 0 shows 0 here, whatever was set.
IOPL_3 = 3 << 12
# The XMM registers in an XSAVE area (SDM vol. 1, 13.4.2).
XMM = slice(160, 416)
# The bases of FS and GS are fields of those segments.
SAVED_MSRS = tuple(number for number in ADDRESS_MSRS if number & ~1 != 0xC0000100)
COMPARED = (
    "gpr", "rip", "cs", "ss", "ds", "es", "fs", "gs", "gdtr", "idtr", "cr0", "cr2", "cr3", "cr4",
    "efer", "dr7",
)  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    """A guest on each engine."""
    guests = []
    for name in ("soft", "kvm"):
        engine = ENGINES.get(name)()
        found = select.judge(engine)
        if found.usability is Usability.UNUSABLE:
            pytest.skip(found.reason)
        guests.append(toolkit.build(engine))
        toolkit.write_long_tables(guests[-1].memory)
    yield guests
    for guest in guests:
        guest.vm.close()
        guest.memory.close()


def outcome(guest, text, ring, data):
    guest.log.clear()
    guest.reads[0x11] = 0x5A
    state = long_mode(ring=ring)
    state = replace(state, msrs={**state.msrs, **dict.fromkeys(SAVED_MSRS, 0)})
    if ring:
        state = replace(state, rflags=state.rflags | IOPL_3)
    guest.memory.write(toolkit.STACK - 0x800, bytes(0x800))
    guest.memory.write(DATA, data)
    guest.load(text, state)
    guest.run()
    # On into the endless loop behind the write to DONE, with which that one is complete.
    threading.Timer(0.005, guest.vcpu.kick).start()
    assert isinstance(guest.vcpu.run(), Kicked)
    after = guest.vcpu.get_state()
    found = {name: getattr(after, name) for name in COMPARED}
    found["rflags"] = after.rflags & ~(AUXILIARY_CARRY | IOPL_3)
    found["xmm"] = after.xsave[XMM]
    found["msrs"] = [after.msrs.get(n, 0) for n in SAVED_MSRS]
    found["data"] = guest.memory.read(DATA, DATA_SIZE)
    found["stack"] = guest.memory.read(toolkit.STACK - 0x800, 0x800)
    found["exits"] = [repr(event) for event in guest.quiet()]
    return found


def test_a_model_with_a_vendor_looks_the_same():
    """Every leaf of it, as the CPUID instruction shows it."""
    model, engines = "x86-64-v2-intel", [ENGINES.get(name)() for name in ("soft", "kvm")]
    if select.judge(engines[1]).usability is not Usability.USABLE:
        pytest.skip("a KVM that emulates ring 0 shows the host's CPUID there")
    supported = engines[1].processor_bounds()
    # 0x15, 0x16 and KVM's own tell frequencies, which each engine measures.
    leaves = cpuid.build(model, vcpus=1, tsc_hz=10**9, supported=supported.leaves)
    places = [(n.function, n.index or 0) for n in leaves if n.function & 0x40000010 == 0]
    lines = []
    for function, index in places:
        lines += [f"mov eax, {function}", f"mov ecx, {index}", "cpuid", "out 0x10, eax"]
        for register in ("ebx", "ecx", "edx"):
            lines += [f"mov eax, {register}", "out 0x10, eax"]
    seen = []
    for engine in engines:
        guest = toolkit.build(engine, model, supported)
        toolkit.write_long_tables(guest.memory)
        guest.load("\n".join([*lines, "out 0xf4, al"]), long_mode())
        guest.run()
        seen.append(guest.writes())
        guest.vm.close()
        guest.memory.close()
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4 * len(places)


@pytest.mark.parametrize("ring", [0, 3])
def test_random_programs(pair, ring):
    emulating = select.judge(ENGINES.get("kvm")()).usability is Usability.SLOW
    seed = chance.seed()
    for number in range(PROGRAMS):
        rng = random.Random(f"{seed} {number} {ring}")
        # A KVM that emulates ring 0 knows no vector instructions there.
        generator = Generator(rng, vectors=ring == 3 or not emulating)
        text = generator.program(LENGTH, ring=ring)
        data = rng.randbytes(DATA_SIZE)
        soft, kvm = (outcome(guest, text, ring, data) for guest in pair)
        differing = {name: (soft[name], kvm[name]) for name in soft if soft[name] != kvm[name]}
        assert not differing, f"RINGZERO_SEED={seed}, program {number}:\n{text}"
