"""User pages that supervisor code reaches while RFLAGS.AC suspends SMAP (SDM vol. 3A, 4.6.1).

The kernel's TLB has no room for AC in its tags. So entries for user pages are
made only while AC is set, noted here, and taken back when AC is cleared or
user code is entered (where the system's own accesses ignore AC). An entry that
was replaced since is taken back in vain, which costs one miss.
"""

from __future__ import annotations

from ringzero.isa.caches import SECOND_TLB, TLB_INVALID, TlbEntry
from ringzero.isa.x86.cpu import OPEN_PAGES, Cpu
from ringzero.native import native, pointer, u64


@native(inline="never")
def close_pages(cpu: Cpu) -> None:
    """Take back all entries that were made under RFLAGS.AC."""
    while cpu.open_count != 0:
        cpu.open_count -= 1
        # It may lie in either way by now.
        for way in (0, SECOND_TLB):
            entry = pointer(TlbEntry, cpu.open_entries[cpu.open_count] + way)
            entry.read = TLB_INVALID
            entry.write = TLB_INVALID
            entry.execute = TLB_INVALID


@native
def note_open_page(cpu: Cpu, entry: u64) -> None:
    """Note the TLB entry at a host address as one that depends on RFLAGS.AC."""
    if cpu.open_count == OPEN_PAGES:
        close_pages(cpu)
    cpu.open_entries[cpu.open_count] = entry
    cpu.open_count += 1
