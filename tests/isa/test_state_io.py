"""CpuState to the Cpu struct and back."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import StateError
from ringzero.isa.x86 import ccops, state_io
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.privileged.reset import after_init, after_reset, after_sipi
from ringzero.isa.x86.state import (
    EVENT_INTERRUPT,
    EVENT_NMI,
    EVENT_SOFTWARE,
    MP_HALTED,
    MP_INIT_RECEIVED,
    MP_RUNNABLE,
    XSAVE_BASE_SIZE,
    CpuState,
    PendingEvent,
    Segment,
    Table,
)
from tests.isa.guest import Guest, assemble

pytestmark = pytest.mark.engine

U64 = st.integers(0, (1 << 64) - 1)
SEGMENT = st.builds(
    Segment,
    selector=st.integers(0, 0xFFFF),
    base=U64,
    limit=st.integers(0, 0xFFFFFFFF),
    attributes=st.integers(0, 0xFFF),
)
TABLE = st.builds(Table, base=U64, limit=st.integers(0, 0xFFFF))


@pytest.fixture(scope="module")
def cpu():
    guest = Guest()
    yield guest.cpu
    del guest


def xsave(data: bytes) -> bytes:
    """An XSAVE area whose reserved parts are as the processor writes them."""
    area = bytearray(data.ljust(XSAVE_BASE_SIZE, b"\0"))
    area[5] = 0
    area[26:32] = bytes([0, 0, 0xFF, 0xFF, 0, 0])
    for n in range(8):
        area[42 + 16 * n : 48 + 16 * n] = bytes(6)
    area[416:] = bytes(160)
    area[512] = 3
    return bytes(area)


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        CpuState,
        gpr=st.tuples(*[U64] * 16),
        rip=U64,
        rflags=st.integers(0, (1 << 22) - 1).map(lambda f: f & ~x86.VM | 2),
        cs=SEGMENT, ds=SEGMENT, es=SEGMENT, fs=SEGMENT, gs=SEGMENT, ss=SEGMENT, ldtr=SEGMENT,
        tr=SEGMENT, gdtr=TABLE, idtr=TABLE,
        cr0=U64, cr2=U64, cr3=U64, cr4=U64, efer=U64,
        dr0=U64, dr1=U64, dr2=U64, dr3=U64, dr6=U64, dr7=U64,
        xcr0=st.sampled_from((1, 3)),
        xsave=st.binary(min_size=416, max_size=416).map(xsave),
        msrs=st.fixed_dictionaries(dict.fromkeys(state_io.MSRS, U64)),
        tsc=U64,
        interrupt_shadow=st.sampled_from((0, 1, 2, 3)),
        nmi_masked=st.booleans(),
        pending_event=st.none()
        | st.builds(PendingEvent, kind=st.just(EVENT_INTERRUPT), vector=st.integers(16, 255))
        | st.just(PendingEvent(EVENT_NMI, 2)),
        mp_state=st.sampled_from((MP_RUNNABLE, MP_HALTED)),
    ),
    U64,
)  # fmt: skip
def test_round_trip(cpu, state, host_tsc):
    state_io.write_state(cpu, state, host_tsc)
    assert state_io.read_state(cpu, host_tsc) == state


def test_tsc_goes_on_from_where_it_was(cpu):
    state_io.write_state(cpu, replace(CpuState(), tsc=1000), host_tsc=5_000_000)
    assert state_io.read_state(cpu, host_tsc=5_000_050).tsc == 1050


KINDS = [(kind, bits) for kind in ccops.KINDS for bits in (8, 16, 32, 64)]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(KINDS), U64, U64, st.integers(0, 1))
def test_lazy_flags_are_computed_as_native_code_does(guest_flags, kind, dst, src, aux):
    operation, bits = kind
    mask = (1 << bits) - 1
    if operation in (ccops.INC, ccops.DEC, ccops.MUL):
        src &= 1
    cpu = guest_flags.cpu
    guest_flags.state = guest_flags.state
    guest_flags.vcpu.set_state(guest_flags.state)
    cpu.cc_op = ccops.cc_op(operation, bits)
    cpu.cc_dst, cpu.cc_src, cpu.cc_aux = dst & mask, src & mask, aux
    expected = state_io.read_rflags(cpu)
    guest_flags.go([])
    assert guest_flags.read_q(cpu.regs[x86.RSP]) == expected


@pytest.fixture(scope="module")
def guest_flags():
    guest = Guest()
    guest.write(guest.state.rip, assemble("pushfq; hlt"))
    return guest


def test_pending_faults_are_not_injected(cpu):
    state = replace(CpuState(), pending_event=PendingEvent(EVENT_SOFTWARE, 3))
    state_io.write_state(cpu, state)
    assert cpu.inject == 0 and cpu.delivering == 0


@pytest.mark.parametrize(
    ("cs", "efer", "cr0", "mode"),
    [
        (0xA9B, x86.EFER_LMA, 0x80000001, x86.MODE_64),
        (0xC9B, x86.EFER_LMA, 0x80000001, x86.MODE_32),
        (0xC9B, 0, 1, x86.MODE_32),
        (0x9B, 0, 0, x86.MODE_16),
    ],
)
def test_mode_follows_from_cs(cpu, cs, efer, cr0, mode):
    state_io.write_state(
        cpu, replace(CpuState(), cs=Segment(8, 0, 0xFFFFFFFF, cs), efer=efer, cr0=cr0)
    )
    assert cpu.mode == mode and cpu.segmented == int(mode != x86.MODE_64)


def test_privilege_follows_from_ss(cpu):
    user = Segment(0x2B, 0, 0xFFFFFFFF, 0xCF3)
    state_io.write_state(cpu, replace(CpuState(), ss=user, cr0=1))
    assert cpu.cpl == 3 and cpu.tlb == cpu.tlb_user
    state_io.write_state(cpu, replace(CpuState(), ss=user, cr0=0))
    assert cpu.cpl == 0 and cpu.tlb == cpu.tlb_kernel


def test_unknown_extended_state_is_refused(cpu):
    area = bytearray(CpuState().xsave)
    area[512] = 7
    with pytest.raises(StateError):
        state_io.write_state(cpu, replace(CpuState(), xsave=bytes(area)))
    with pytest.raises(StateError):
        state_io.write_state(cpu, replace(CpuState(), xcr0=7))
    with pytest.raises(StateError):
        state_io.write_state(cpu, replace(CpuState(), xsave=bytes(100)))


def test_reset_init_sipi():
    reset = after_reset(0x606A0)
    assert (reset.rip, reset.cs.base, reset.gpr[2]) == (0xFFF0, 0xFFFF0000, 0x606A0)
    dirty = replace(reset, cr0=0x80000011, cr4=0x20, efer=0x500, tsc=7, xcr0=3, msrs={1: 2})
    waiting = after_init(dirty, 0x606A0)
    # CD and NW stay as they were; everything of the system but MSRs, x87 and TSC goes.
    assert (waiting.cr0, waiting.cr4, waiting.efer) == (0x10, 0, 0)
    assert (waiting.tsc, waiting.xcr0, waiting.msrs) == (7, 3, {1: 2})
    assert waiting.mp_state == MP_INIT_RECEIVED
    started = after_sipi(waiting, 0x9A)
    assert (started.cs.selector, started.cs.base, started.rip) == (0x9A00, 0x9A000, 0)
    assert started.mp_state == MP_RUNNABLE
