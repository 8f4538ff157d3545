"""Between `CpuState` and KVM's structures, both ways."""

from __future__ import annotations

from collections.abc import Callable

from ringzero.errors import StateError
from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd
from ringzero.isa.x86 import state as x86
from ringzero.isa.x86.state import CpuState, PendingEvent, Segment, Table

XSAVE_SIZE = 4096
_XSTATE_BV = 512

MP_STATES = {
    kvm.MP_STATE_RUNNABLE: x86.MP_RUNNABLE,
    kvm.MP_STATE_UNINITIALIZED: x86.MP_UNINITIALIZED,
    kvm.MP_STATE_INIT_RECEIVED: x86.MP_INIT_RECEIVED,
    kvm.MP_STATE_HALTED: x86.MP_HALTED,
    kvm.MP_STATE_SIPI_RECEIVED: x86.MP_SIPI_RECEIVED,
}
_MP_NUMBERS = {name: number for number, name in MP_STATES.items()}

# MSRs that have a field in CpuState, or that only describe the host and cannot be set.
_NOT_SAVED = frozenset(
    {
        x86.MSR_TSC,
        0x10A,  # ARCH_CAPABILITIES
        0x345,  # PERF_CAPABILITIES
        0xCE,  # PLATFORM_INFO
        0x8B,  # microcode revision
        0x34,  # SMI count
        0xC0010015,  # HWCR
        0x12,  # KVM clock by its old numbers, the same as the new ones
        0x11,
    }
)
# The timer's deadline takes effect only with the APIC in place; TSC_ADJUST moves with the TSC.
_LAST = (x86.MSR_TSC_DEADLINE,)

_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr")


# Hyper-V's synthetic registers: the guest is not shown that interface.
_HYPER_V = range(0x40000000, 0x40000200)


def saved_msrs(listed: list[int]) -> list[int]:
    """Return which of the MSRs that KVM lists belong into `CpuState.msrs`."""
    return [index for index in listed if index not in _NOT_SAVED and index not in _HYPER_V]


def _from_segment(segment: kvm.Segment) -> Segment:
    attributes = (
        segment.type
        | segment.s << 4
        | segment.dpl << 5
        | segment.present << 7
        | segment.avl << 8
        | segment.l << 9
        | segment.db << 10
        | segment.g << 11
    )
    if segment.unusable:
        attributes &= ~x86.ATTR_PRESENT
    return Segment(segment.selector, segment.base, segment.limit, attributes)


def _to_segment(target: kvm.Segment, segment: Segment) -> None:
    bits = segment.attributes
    target.selector, target.base, target.limit = segment.selector, segment.base, segment.limit
    target.type, target.s, target.dpl = bits & 0xF, bits >> 4 & 1, bits >> 5 & 3
    target.present, target.avl, target.l = bits >> 7 & 1, bits >> 8 & 1, bits >> 9 & 1
    target.db, target.g = bits >> 10 & 1, bits >> 11 & 1
    target.unusable = 1 - target.present


def read(vcpu: kvmfd.KvmVcpuFd, msrs: list[int], *, apic: bool, xcrs: bool) -> CpuState:
    """Return everything about `vcpu`, which must not be running; raises HostError.

    `apic`: its local APIC is in the kernel; `xcrs`: the host has XSAVE.
    """
    # First, because it processes a pending INIT or STARTUP.
    mp_state = vcpu.get(kvm.GET_MP_STATE, kvm.MpState).mp_state
    regs = vcpu.get(kvm.GET_REGS, kvm.Regs)
    sregs = vcpu.get(kvm.GET_SREGS, kvm.Sregs)
    debug = vcpu.get(kvm.GET_DEBUGREGS, kvm.Debugregs)
    events = vcpu.get(kvm.GET_VCPU_EVENTS, kvm.VcpuEvents)
    values = vcpu.get_msrs([*msrs, x86.MSR_TSC])
    tsc = values.pop(x86.MSR_TSC, 0)
    values[x86.MSR_APIC_BASE] = sregs.apic_base
    return CpuState(
        gpr=tuple(getattr(regs, name) for name in x86.GPR_NAMES),
        rip=regs.rip,
        rflags=regs.rflags,
        **{name: _from_segment(getattr(sregs, name)) for name in _SEGMENTS},
        ldtr=_from_segment(sregs.ldt),
        gdtr=Table(sregs.gdt.base, sregs.gdt.limit),
        idtr=Table(sregs.idt.base, sregs.idt.limit),
        cr0=sregs.cr0,
        cr2=sregs.cr2,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        cr8=sregs.cr8,
        efer=sregs.efer,
        dr0=debug.db[0],
        dr1=debug.db[1],
        dr2=debug.db[2],
        dr3=debug.db[3],
        dr6=debug.dr6,
        dr7=debug.dr7,
        xcr0=_read_xcr0(vcpu) if xcrs else 1,
        xsave=_trim(bytes(vcpu.get(kvm.GET_XSAVE, kvm.Xsave).region)),
        msrs=values,
        tsc=tsc,
        interrupt_shadow=events.interrupt.shadow,
        nmi_pending=bool(events.nmi.pending),
        nmi_masked=bool(events.nmi.masked),
        pending_event=_event(events),
        mp_state=MP_STATES.get(mp_state, x86.MP_RUNNABLE),
        lapic=bytes(vcpu.get(kvm.GET_LAPIC, kvm.LapicState).regs) if apic else None,
    )


def _read_xcr0(vcpu: kvmfd.KvmVcpuFd) -> int:
    xcrs = vcpu.get(kvm.GET_XCRS, kvm.Xcrs)
    return next((item.value for item in xcrs.xcrs[: xcrs.nr_xcrs] if item.xcr == 0), 1)


def _trim(area: bytes) -> bytes:
    """Leave out what lies behind the header unless some part there is in use."""
    present = int.from_bytes(area[_XSTATE_BV : _XSTATE_BV + 8], "little")
    # x87 and SSE are always given in full, so that equal states are equal bytes.
    header = (present | 3).to_bytes(8, "little") + bytes(56)
    rest = b"" if present < 4 else area[x86.XSAVE_BASE_SIZE :]
    # Bytes 464-511 are for software.
    return area[:464] + bytes(48) + header + rest


def _event(events: kvm.VcpuEvents) -> PendingEvent | None:
    exception, interrupt = events.exception, events.interrupt
    if exception.injected or exception.pending:
        code = exception.error_code if exception.has_error_code else None
        return PendingEvent(x86.EVENT_EXCEPTION, exception.nr, code)
    if interrupt.injected:
        kind = x86.EVENT_SOFTWARE if interrupt.soft else x86.EVENT_INTERRUPT
        return PendingEvent(kind, interrupt.nr)
    if events.nmi.injected:
        return PendingEvent(x86.EVENT_NMI, 2)
    return None


def write(
    vcpu: kvmfd.KvmVcpuFd,
    state: CpuState,
    set_tsc: Callable[[int], None],
    *,
    apic: bool,
    xcrs: bool,
) -> None:
    """Make `vcpu` what `state` says; raises HostError or StateError.

    `set_tsc` sets its time-stamp counter. Flags as for `read`.
    """
    if len(state.xsave) > XSAVE_SIZE or len(state.xsave) < x86.XSAVE_BASE_SIZE:
        raise StateError("XSAVE area of a size that KVM does not take", seen=len(state.xsave))
    if state.mp_state not in _MP_NUMBERS:
        raise StateError(f"no such state of a processor: {state.mp_state!r}")
    sregs = vcpu.get(kvm.GET_SREGS, kvm.Sregs)
    for name in _SEGMENTS:
        _to_segment(getattr(sregs, name), getattr(state, name))
    _to_segment(sregs.ldt, state.ldtr)
    sregs.gdt.base, sregs.gdt.limit = state.gdtr.base, state.gdtr.limit
    sregs.idt.base, sregs.idt.limit = state.idtr.base, state.idtr.limit
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        setattr(sregs, name, getattr(state, name))
    sregs.apic_base = state.msrs.get(x86.MSR_APIC_BASE, sregs.apic_base)
    sregs.interrupt_bitmap[:] = [0] * 4
    vcpu.set(kvm.SET_SREGS, sregs)

    area = kvm.Xsave()
    area.region[: len(state.xsave)] = state.xsave
    vcpu.set(kvm.SET_XSAVE, area)
    if xcrs:
        registers = kvm.Xcrs(nr_xcrs=1)
        registers.xcrs[0].value = state.xcr0
        vcpu.set(kvm.SET_XCRS, registers)
    elif state.xcr0 != 1:
        raise StateError("the saved processor uses XSAVE, which this host's has not")

    regs = kvm.Regs(**dict(zip(x86.GPR_NAMES, state.gpr, strict=True)))
    regs.rip, regs.rflags = state.rip, state.rflags
    vcpu.set(kvm.SET_REGS, regs)

    debug = kvm.Debugregs(dr6=state.dr6, dr7=state.dr7)
    debug.db[:] = [state.dr0, state.dr1, state.dr2, state.dr3]
    vcpu.set(kvm.SET_DEBUGREGS, debug)

    late = {index: state.msrs[index] for index in _LAST if index in state.msrs}
    early = {
        index: value
        for index, value in state.msrs.items()
        if index not in late and index != x86.MSR_APIC_BASE
    }
    set_tsc(state.tsc)
    refused = vcpu.set_msrs(early)
    # A register that this KVM lacks may be left at zero: it was never used.
    if lost := [hex(index) for index in refused if early.get(index)]:
        raise StateError(f"this KVM does not take MSRs {', '.join(lost)}")
    vcpu.set(kvm.SET_VCPU_EVENTS, _to_events(state))
    vcpu.set(kvm.SET_MP_STATE, kvm.MpState(_MP_NUMBERS[state.mp_state]))
    if apic and state.lapic is not None:
        if len(state.lapic) != 1024:
            raise StateError("a local APIC's page has 1024 bytes", seen=len(state.lapic))
        page = kvm.LapicState()
        page.regs[:] = state.lapic
        vcpu.set(kvm.SET_LAPIC, page)
    if late:
        vcpu.set_msrs(late)


def _to_events(state: CpuState) -> kvm.VcpuEvents:
    events = kvm.VcpuEvents()
    events.flags = kvm.VCPUEVENT_VALID_NMI_PENDING | kvm.VCPUEVENT_VALID_SHADOW
    events.interrupt.shadow = state.interrupt_shadow
    events.nmi.pending, events.nmi.masked = state.nmi_pending, state.nmi_masked
    event = state.pending_event
    if event is None:
        return events
    if event.kind == x86.EVENT_EXCEPTION:
        events.exception.injected, events.exception.nr = 1, event.vector
        events.exception.has_error_code = event.error_code is not None
        events.exception.error_code = event.error_code or 0
    elif event.kind == x86.EVENT_NMI:
        events.nmi.injected = 1
    elif event.kind in (x86.EVENT_INTERRUPT, x86.EVENT_SOFTWARE):
        events.interrupt.injected, events.interrupt.nr = 1, event.vector
        events.interrupt.soft = event.kind == x86.EVENT_SOFTWARE
    else:
        raise StateError(f"no such event: {event.kind!r}")
    return events
