"""Guest memory by linear address: page walks, the soft TLB, loads, stores, fetches.

The fast path is a TLB hit on RAM inside one page. All else comes to the slow
functions here: filling the TLB, page faults, pages that hold translated code,
accesses across pages, devices. Paging is that of the SDM vol. 3A, chapter 4:
32-bit, PAE and 4-level.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import (
    PAGE_MASK,
    TLB_INVALID,
    page_of_last,
    tlb_entry_of,
)
from ringzero.isa.exclusive import (
    Exclusive,
    acquire,
    release,
    try_acquire,
)
from ringzero.isa.execution import EXIT_MMIO_READ, EXIT_MMIO_WRITE
from ringzero.isa.x86 import cpu as x86
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.privileged.alignment import check_alignment
from ringzero.isa.x86.privileged.apic import read_apic, reads_apic, write_apic
from ringzero.isa.x86.privileged.breakpoints import DR7_ENABLED, match_data, watches_page
from ringzero.isa.x86.privileged.exclusive import (
    await_stop,
    end_stop,
    shared_of,
)
from ringzero.isa.x86.privileged.faults import external, raise_fault_code, raise_gp0
from ringzero.isa.x86.privileged.irqstatus import acknowledge_reasons, irq_status_at
from ringzero.isa.x86.privileged.lookaside import (
    forget_code,
    forget_ways,
    make_room,
    note_large_page,
    note_local,
    take_second,
)
from ringzero.isa.x86.privileged.ram import host_address, store_host, written_code
from ringzero.isa.x86.privileged.transmit import drain_notified
from ringzero.native import (
    compare_exchange,
    fill_memory,
    load,
    native,
    select,
    staged,
    store,
    u8,
    u16,
    u32,
    u64,
    u128,
    v128,
)

ALL_ONES = (1 << 64) - 1
# What a walk returns when another vCPU changed an entry that it was about to mark.
LOST_RACE = ALL_ONES
# Kinds of access, as given to `translate`.
READ, WRITE, EXECUTE = 0, 1, 2

# Page-fault error code (SDM vol. 3A, section 4.7) and paging-structure bits (tables 4-15 to 4-20).
PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH = 1, 2, 4, 8, 16
PTE_P, PTE_W, PTE_U, PTE_A, PTE_D, PTE_PS, PTE_G = 1, 2, 4, 32, 64, 128, 256
PTE_NX = 1 << 63
PTE_ADDRESS = 0x000F_FFFF_FFFF_F000


@native(inline="never")
def page_fault(cpu: Cpu, va: u64, access: u32, user: u32, code: u64) -> None:
    """Set CR2 and raise #PF; `code` holds the P and RSVD bits."""
    cpu.cr2 = va
    code = code | select(access == WRITE, u64(PF_WRITE), u64(0))
    code = code | select(user != 0, u64(PF_USER), u64(0))
    no_execute = ((cpu.efer & x86.EFER_NXE) != 0) & ((cpu.cr4 & x86.CR4_PAE) != 0)
    fetch_counts = (access == EXECUTE) & (no_execute | ((cpu.cr4 & x86.CR4_SMEP) != 0))
    code = code | select(fetch_counts, u64(PF_FETCH), u64(0))
    raise_fault_code(cpu, x86.PF_FAULT, code)


@staged
def read_entry(cpu: Any, table: Any, offset: Any, wide: bool) -> Any:
    """Read a paging-structure entry; one outside RAM reads as not present."""
    host = host_address(cpu, table + offset)
    entry = u64(0)
    if host != 0:
        entry = load(u64, host) if wide else u64(load(u32, host))
    return entry


@staged
def mark_entry(cpu: Any, table: Any, offset: Any, entry: Any, bits: Any, wide: bool) -> Any:
    """Set accessed and dirty bits of an entry in guest memory where they are not set.

    Returns 0 when the entry is not what it was any more: then nothing was done, and the
    walk has to begin anew (SDM vol. 3A, 4.8: processors do it in one locked cycle).
    """
    kind = u64 if wide else u32
    same = u64(0) == 0
    if (entry & bits) != bits:
        host = host_address(cpu, table + offset)
        seen = compare_exchange(kind, host, kind(entry), kind(entry | bits))
        same = seen == kind(entry)
    return same


@staged
def reserved_bits(cpu: Any) -> Any:
    """Bits that must be 0 in every entry: above the physical address width, NX when off."""
    high = ~cpu.physical_mask & u64(PTE_ADDRESS)
    return high | select((cpu.efer & x86.EFER_NXE) != 0, u64(0), u64(PTE_NX))


@native(inline="never")
def translate(cpu: Cpu, va: u64, access: u32, user: u32) -> u64:
    """Return the guest-physical address of a linear one, filling the TLB; may raise #PF.

    `user` is 1 for an access with user privilege.
    """
    while True:
        physical = walk(cpu, va, access, user)
        if physical != LOST_RACE:
            return physical


@native(inline="never")
def walk(cpu: Cpu, va: u64, access: u32, user: u32) -> u64:
    """Walk the page tables for `translate`; LOST_RACE when that must be done again.

    Intel SDM vol. 3A, sections 4.3 to 4.6 (walks and rights), 4.8 (accessed and dirty).
    """
    cpu.count_walks += 1
    if (cpu.cr0 & x86.CR0_PG) == 0:
        if user == 0:
            note_local(cpu, va, u32(1), u32(0))
        fill_tlb(cpu, va, va & ALL_ONES, u32(1), u32(1), u32(1), user)
        return va
    rights = u64(PTE_W | PTE_U)
    no_execute = u64(0)
    page = u64(0)
    size = u64(0x1000)
    entry = u64(0)
    dirty = select(access == WRITE, u64(PTE_A | PTE_D), u64(PTE_A))
    if (cpu.cr4 & x86.CR4_PAE) == 0:
        table = cpu.cr3 & 0xFFFFF000
        offset = (va >> 20) & 0xFFC
        entry = read_entry(cpu, table, offset, False)
        if (entry & PTE_P) == 0:
            page_fault(cpu, va, access, user, 0)
        rights = rights & entry
        if (entry & PTE_PS) != 0 and (cpu.cr4 & x86.CR4_PSE) != 0:
            size = u64(0x400000)
            page = (entry & 0xFFC00000) | ((entry & 0x1FE000) << 19)
        else:
            if not mark_entry(cpu, table, offset, entry, u64(PTE_A), False):
                return u64(LOST_RACE)
            table = entry & 0xFFFFF000
            offset = (va >> 10) & 0xFFC
            entry = read_entry(cpu, table, offset, False)
            if (entry & PTE_P) == 0:
                page_fault(cpu, va, access, user, 0)
            rights = rights & entry
            page = entry & 0xFFFFF000
        check_rights(cpu, va, access, user, rights, no_execute)
        if not mark_entry(cpu, table, offset, entry, dirty, False):
            return u64(LOST_RACE)
    else:
        reserved = reserved_bits(cpu)
        table = cpu.cr3 & PTE_ADDRESS
        shift = u64(39)
        if (cpu.efer & x86.EFER_LMA) == 0:
            table = cpu.cr3 & 0xFFFFFFE0
            offset = (va >> 27) & 0x18
            entry = read_entry(cpu, table, offset, True)
            if (entry & PTE_P) == 0:
                page_fault(cpu, va, access, user, 0)
            table = entry & PTE_ADDRESS
            shift = u64(21)
        while True:
            offset = ((va >> shift) & 0x1FF) << 3
            entry = read_entry(cpu, table, offset, True)
            if (entry & PTE_P) == 0:
                page_fault(cpu, va, access, user, 0)
            large = (entry & PTE_PS) != 0 and shift < 39 and shift > 12
            bad = entry & reserved
            if shift == 39:
                bad = bad | (entry & PTE_PS)
            if large:
                # Bits 13 to 29 (or 20) of a large page's entry are reserved; 12 is PAT.
                bad = bad | (entry & ((u64(1) << shift) - 0x2000))
            if bad != 0:
                page_fault(cpu, va, access, user, PF_PRESENT | PF_RESERVED)
            rights = rights & entry
            no_execute = no_execute | (entry & PTE_NX)
            if large or shift == 12:
                size = u64(1) << shift
                page = entry & PTE_ADDRESS & ~(size - 1)
                check_rights(cpu, va, access, user, rights, no_execute)
                if not mark_entry(cpu, table, offset, entry, dirty, True):
                    return u64(LOST_RACE)
                break
            if not mark_entry(cpu, table, offset, entry, u64(PTE_A), True):
                return u64(LOST_RACE)
            table = entry & PTE_ADDRESS
            shift -= 9
    if size != 0x1000:
        note_large_page(cpu, va, size)
    is_global = (entry & PTE_G) != 0 and (cpu.cr4 & x86.CR4_PGE) != 0
    if user == 0 and (va >> 63 == 0 or not is_global):
        note_local(cpu, va, u32(no_execute == 0), u32(smap_suspended(cpu)))
    physical = page | (va & (size - 1))
    user_page = (rights & PTE_U) != 0
    supervisor_write = (rights & PTE_W) != 0 or (cpu.cr0 & x86.CR0_WP) == 0
    writable = select(user != 0, (rights & PTE_W) != 0, supervisor_write)
    # A page not yet dirty must come here again when it is written.
    writable = writable & (((entry & PTE_D) != 0) | (access == WRITE))
    executable = no_execute == 0
    if user == 0 and user_page:
        executable = executable & ((cpu.cr4 & x86.CR4_SMEP) == 0)
        if (cpu.cr4 & x86.CR4_SMAP) != 0 and not smap_suspended(cpu):
            return physical
    fill_tlb(cpu, va, physical, u32(1), u32(writable), u32(executable), user)
    return physical


@staged
def smap_suspended(cpu: Any) -> Any:
    """Whether RFLAGS.AC opens user pages to the supervisor; not to its accesses from CPL 3."""
    return ((cpu.rflags & x86.AC) != 0) & (cpu.cpl != 3)


@staged
def check_rights(cpu: Any, va: Any, access: Any, user: Any, rights: Any, no_execute: Any) -> None:
    """Raise #PF unless the combined rights of a walk allow the access (SDM 4.6)."""
    allowed = (access != EXECUTE) | (no_execute == 0)
    user_page = (rights & PTE_U) != 0
    can_write = (rights & PTE_W) != 0
    if user != 0:
        allowed = allowed & user_page & ((access != WRITE) | can_write)
    else:
        allowed = allowed & ((access != WRITE) | can_write | ((cpu.cr0 & x86.CR0_WP) == 0))
        smep = ((cpu.cr4 & x86.CR4_SMEP) != 0) & user_page & (access == EXECUTE)
        smap = ((cpu.cr4 & x86.CR4_SMAP) != 0) & user_page & (access != EXECUTE)
        allowed = allowed & ~smep & ~(smap & ~smap_suspended(cpu))
    if not allowed:
        page_fault(cpu, va, access, user, PF_PRESENT)


@native(inline="never")
def fill_tlb(
    cpu: Cpu, va: u64, physical: u64, readable: u32, writable: u32, executable: u32, user: u32
) -> None:
    """Enter a translation of one 4 KiB page; pages that are not RAM are not entered."""
    page = va & ~u64(PAGE_MASK)
    host = host_address(cpu, physical & ~u64(PAGE_MASK))
    entry = tlb_entry(cpu, va, user)
    if host == 0 or watches_page(cpu, va) != 0:
        forget_ways(entry, page)
        return
    make_room(cpu, entry, va)
    code = load(u64, cpu.code_pages + (((host - cpu.ram) >> 12) << 3))
    entry.read = select(readable != 0, page, u64(TLB_INVALID))
    entry.write = select((writable != 0) & (code == 0), page, u64(TLB_INVALID))
    entry.execute = select(executable != 0, page, u64(TLB_INVALID))
    entry.addend = host - page


@staged
def tlb_entry(cpu: Any, va: Any, user: Any) -> Any:
    """Return the TLB entry that serves `va` for user or supervisor accesses."""
    kernel = select(smap_suspended(cpu), cpu.tlb_open, cpu.tlb_kernel)
    table = select(user != 0, cpu.tlb_user, kernel)
    return tlb_entry_of(table, va)


@staged
def took_second(cpu: Any, entry: Any, va: Any) -> Any:
    """Bring the page that holds `va` to an entry of the current TLB's first way if it is near.

    Returns whether that may have changed the entry: not where accesses are to be checked.
    """
    plain = cpu.tlb != cpu.tlb_checked
    if plain:
        take_second(entry, va)
    return plain


@staged
def check_canonical(cpu: Any, va: Any) -> None:
    """Raise #GP(0) in long mode for an address that is not canonical (48 bits)."""
    top = va >> 47
    if (cpu.efer & x86.EFER_LMA) != 0 and top != 0 and top != 0x1FFFF:
        raise_gp0(cpu)


# --- loads and stores --------------------------------------------------------


@staged
def page_behind(cpu: Any, last: Any) -> Any:
    """Return the page of an access's last byte, which lies in another page than its first.

    Outside 64-bit mode linear addresses have 32 bits, and wrap.
    """
    page = last & ~u64(PAGE_MASK)
    return select((cpu.mode != x86.MODE_64) & (page == 1 << 32), u64(0), page)


@native(inline="never")
def load_slow(cpu: Cpu, va: u64, size: u64, user: u32) -> u64:
    """Load 1 to 8 bytes that the TLB did not serve."""
    cpu.count_tlb_misses += 1
    check_canonical(cpu, va)
    check_alignment(cpu, va, size, user)
    last = va + size - 1
    if (cpu.dr[7] & DR7_ENABLED) != 0:
        match_data(cpu, va, size, 0)
    if (va ^ last) <= PAGE_MASK:
        physical = translate(cpu, va, READ, user)
        host = host_address(cpu, physical)
        if host == 0:
            if reads_apic(cpu, physical, size) != 0:
                return read_apic(cpu, physical)
            status = irq_status_at(cpu, physical, size)
            if status != 0:
                return u64(load(u32, status))
            return external(cpu, EXIT_MMIO_READ, physical, u32(size), 0)
        if size == 1:
            return u64(load(u8, host))
        if size == 2:
            return u64(load(u16, host))
        if size == 4:
            return u64(load(u32, host))
        return load(u64, host)
    check_canonical(cpu, last)
    first_page = translate(cpu, va, READ, user)
    second_page = translate(cpu, page_behind(cpu, last), READ, user)
    split = 0x1000 - (va & PAGE_MASK)
    result = u64(0)
    for i in range(size):
        physical = first_page + i
        if i >= split:
            physical = second_page + (i - split)
        host = host_address(cpu, physical)
        byte = u64(0)
        if host == 0:
            byte = external(cpu, EXIT_MMIO_READ, physical, u32(1), 0)
        else:
            byte = u64(load(u8, host))
        result = result | ((byte & 0xFF) << (i << 3))
    return result


@native(inline="never")
def written_outside(cpu: Cpu, first: u64, count: u64, wait: u32) -> u32:
    """Drop the code of pages that something else than a vCPU wrote to; 1 when that is done.

    For threads that run no guest code; `cpu` is one of the machine's. Without `wait`
    it does nothing, and returns 0, where it would have to wait for others.
    """
    shared = shared_of(cpu)
    lock = cpu.exclusive + Exclusive.offset_of("lock")
    if wait != 0:
        acquire(lock)
    elif try_acquire(lock) == 0:
        return u32(0)
    found = u64(0)
    for page in range(count):
        found = found | load(u64, cpu.code_pages + ((first + page) << 3))
    done = u32(1)
    if found != 0:
        done = wait
    if found != 0 and wait != 0:
        await_stop(shared, u64(0))
        fill_memory(cpu.code_pages + (first << 3), u8(0), count << 3)
        fill_memory(cpu.code_sought + first, u8(0), count)
        forget_code(shared)
        end_stop(shared)
    release(lock)
    return done


@native(inline="never")
def store_slow(cpu: Cpu, va: u64, value: u64, size: u64, user: u32) -> None:
    """Store 1 to 8 bytes that the TLB did not serve."""
    cpu.count_tlb_misses += 1
    check_canonical(cpu, va)
    check_alignment(cpu, va, size, user)
    last = va + size - 1
    if (cpu.dr[7] & DR7_ENABLED) != 0:
        match_data(cpu, va, size, 1)
    if (va ^ last) <= PAGE_MASK:
        physical = translate(cpu, va, WRITE, user)
        host = host_address(cpu, physical)
        if host == 0:
            if write_apic(cpu, physical, size, value) != 0:
                return
            if acknowledge_reasons(cpu, physical, size, value) != 0:
                return
            if drain_notified(cpu, physical, size, value) == 0:
                external(cpu, EXIT_MMIO_WRITE, physical, u32(size), value)
        else:
            store_host(cpu, host, value, size)
        return
    check_canonical(cpu, last)
    first_page = translate(cpu, va, WRITE, user)
    second_page = translate(cpu, page_behind(cpu, last), WRITE, user)
    split = 0x1000 - (va & PAGE_MASK)
    for i in range(size):
        physical = first_page + i
        if i >= split:
            physical = second_page + (i - split)
        host = host_address(cpu, physical)
        byte = (value >> (i << 3)) & 0xFF
        if host == 0:
            external(cpu, EXIT_MMIO_WRITE, physical, u32(1), byte)
        else:
            store_host(cpu, host, byte, 1)


def _make_load(kind: Any, system: bool) -> Any:
    size = kind.size

    def load_fast(cpu: Cpu, va: u64) -> u64:
        table = cpu.tlb_kernel if system else cpu.tlb
        entry = tlb_entry_of(table, va)
        page = page_of_last(va, size)
        if entry.read == page or (took_second(cpu, entry, va) and entry.read == page):
            return load(kind, va + entry.addend)
        user = u32(0) if system else u32(cpu.cpl == 3)
        if size == 16:
            check_canonical(cpu, va)
            check_alignment(cpu, va, 16, user)
            low = u128(load_slow(cpu, va, 8, user))
            high = u128(load_slow(cpu, va + 8, 8, user))
            return kind(low | (high << 64))
        return kind(load_slow(cpu, va, size, user))

    load_fast.__name__ = load_fast.__qualname__ = f"load_{'system_' * system}{kind}"
    load_fast.__annotations__["return"] = kind
    return native(inline="never")(load_fast)


def _make_store(kind: Any, system: bool) -> Any:
    size = kind.size

    def store_fast(cpu: Cpu, va: u64, value: u64) -> None:
        table = cpu.tlb_kernel if system else cpu.tlb
        entry = tlb_entry_of(table, va)
        page = page_of_last(va, size)
        if entry.write == page or (took_second(cpu, entry, va) and entry.write == page):
            store(kind, va + entry.addend, value)
        else:
            user = u32(0) if system else u32(cpu.cpl == 3)
            if size == 16:
                whole = u128(value)
                check_canonical(cpu, va)
                check_alignment(cpu, va, 16, user)
                probe_range(cpu, va, 16, user)
                store_slow(cpu, va, u64(whole), 8, user)
                store_slow(cpu, va + 8, u64(whole >> 64), 8, user)
            else:
                store_slow(cpu, va, u64(value), size, user)

    store_fast.__name__ = store_fast.__qualname__ = f"store_{'system_' * system}{kind}"
    store_fast.__annotations__["value"] = kind
    return native(inline="never")(store_fast)


_KINDS = (u8, u16, u32, u64, v128)
_LOADS = {(k, s): _make_load(k, s) for k in _KINDS for s in (False, True)}
_STORES = {(k, s): _make_store(k, s) for k in _KINDS for s in (False, True)}


@staged
def read_memory(cpu: Any, kind: Any, va: Any) -> Any:
    """Load a `kind` with the current privilege; may raise #PF or #GP, or exit for a device."""
    return _LOADS[kind, False](cpu, va)


@staged
def write_memory(cpu: Any, va: Any, value: Any) -> None:
    """Store `value` with the current privilege."""
    _STORES[value.kind, False](cpu, va, value)


@staged
def read_system(cpu: Any, kind: Any, va: Any) -> Any:
    """Load a `kind` as the supervisor, whatever CPL is (descriptor tables, TSS)."""
    return _LOADS[kind, True](cpu, va)


@staged
def write_system(cpu: Any, va: Any, value: Any) -> None:
    """Store `value` as the supervisor."""
    _STORES[value.kind, True](cpu, va, value)


@native(inline="never")
def probe_range(cpu: Cpu, va: u64, size: u64, user: u32) -> None:
    """Raise what a write of `size` bytes (at most a page) at `va` would raise."""
    check_canonical(cpu, va)
    translate(cpu, va, WRITE, user)
    last = va + size - 1
    if (va ^ last) > PAGE_MASK:
        check_canonical(cpu, last)
        translate(cpu, page_behind(cpu, last), WRITE, user)


@native(inline="never")
def probe_write(cpu: Cpu, va: u64, size: u64) -> u64:
    """Return the host address for reading and writing `size` bytes at `va`, or 0.

    0 means that it must be done in pieces: across pages, on a device, on a page
    with translated code. Faults as a write does; `size` is a power of two while
    alignment is checked.
    """
    entry = tlb_entry_of(cpu.tlb, va)
    page = page_of_last(va, size)
    if entry.write == page or (took_second(cpu, entry, va) and entry.write == page):
        return va + entry.addend
    user = u32(cpu.cpl == 3)
    check_canonical(cpu, va)
    check_alignment(cpu, va, size, user)
    probe_range(cpu, va, size, user)
    filled = tlb_entry(cpu, va, user)
    if filled.write == page:
        return va + filled.addend
    return u64(0)


@native(inline="never")
def probe_read_page(cpu: Cpu, va: u64) -> u64:
    """Return the host address of `va`, for reading to the end of its page, or 0.

    0 means that it is no RAM, or watched. Faults as a read does; alignment is not checked.
    """
    page = va & ~u64(PAGE_MASK)
    entry = tlb_entry_of(cpu.tlb, va)
    if entry.read == page or (took_second(cpu, entry, va) and entry.read == page):
        return va + entry.addend
    user = u32(cpu.cpl == 3)
    check_canonical(cpu, va)
    translate(cpu, va, READ, user)
    filled = tlb_entry(cpu, va, user)
    if filled.read == page:
        return va + filled.addend
    return u64(0)


@native(inline="never")
def probe_write_bulk(cpu: Cpu, va: u64, size: u64) -> u64:
    """Return the host address for writing `size` bytes at `va`, all of one page, or 0.

    As `probe_write`, but for pages with translated code, too: what of it will be overwritten is
    dropped. The caller writes all of them, and then gives back what the vCPU holds
    (`exclusive.end_exclusive`): such a page gets no more code meanwhile.
    """
    host = probe_write(cpu, va, size)
    if host == 0 and watches_page(cpu, va) == 0:
        host = host_address(cpu, translate(cpu, va, WRITE, u32(cpu.cpl == 3)))
        if host != 0 and load(u64, cpu.code_pages + (((host - cpu.ram) >> 12) << 3)) != 0:
            written_code(cpu, host, size)
    return host


@native
def fetch_page(cpu: Cpu, va: u64) -> u64:
    """Return the host address of the byte at `va`, for executing it; 0 when it is not RAM.

    Raises #PF as an instruction fetch does, #GP(0) when `va` is not canonical.
    """
    entry = tlb_entry(cpu, va, u32(cpu.cpl == 3))
    if entry.execute != va & ~u64(PAGE_MASK):
        take_second(entry, va)
    if entry.execute == va & ~u64(PAGE_MASK):
        return va + entry.addend
    check_canonical(cpu, va)
    return host_address(cpu, translate(cpu, va, EXECUTE, u32(cpu.cpl == 3)))


@native(inline="never")
def peek(cpu: Cpu, va: u64) -> u64:
    """Return the host address to which 4-level paging leads from `va`; 0 where there is no RAM.

    For looking ahead: nothing is marked in the tables, no right is checked, nothing faults.
    """
    table = cpu.cr3 & PTE_ADDRESS
    shift = u64(39)
    while True:
        entry = read_entry(cpu, table, ((va >> shift) & 0x1FF) << 3, True)
        if (entry & PTE_P) == 0:
            return u64(0)
        table = entry & PTE_ADDRESS
        if shift == 12 or ((entry & PTE_PS) != 0 and shift < 39):
            size = u64(1) << shift
            return host_address(cpu, (table & ~(size - 1)) | (va & (size - 1)))
        shift -= 9
