"""4-level paging as the Intel SDM tells it (vol. 3A sections 4.5 to 4.8), in plain Python.

`walk` is the expectation for every combination of permission bits; `access_case`
is the same access as a `SystemCase`, for executors that have page tables.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.oracle.assembler import assemble
from tests.oracle.model import FLAG_BITS, PAGE, PF
from tests.oracle.unicorn_peer import (
    CR0_LONG,
    CR0_WP,
    CR4_LONG,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LONG,
    EFER_NXE,
    GDT,
    HUGE,
    NX,
    PRESENT,
    USER,
    WRITABLE,
    SystemCase,
    SystemOutcome,
)

READ, WRITE, FETCH = "read", "write", "fetch"
_RESERVED_HIGH: Final = 0x000F_FF00_0000_0000
"""Physical address bits above 40, which the tested CPUs do not have."""

VIRTUAL: Final = 1 << 39
"""The page that is accessed: the first one below entry 1 of the PML4."""
LEAF_AT: Final = 0xA000
_TABLES: Final = (0x1000, 0x6000, 0x7000, 0x8000)
"""Physical addresses of the PML4 and of the tables on the way to `VIRTUAL`."""
_CODE, _USER_CODE, _STACK, _RAM = 0x10000, 0x11000, 0x14000, 0x20000


@dataclass(frozen=True, slots=True)
class Controls:
    """What decides besides the entries. `ac` is RFLAGS.AC."""

    write_protect: bool = True
    smep: bool = False
    smap: bool = False
    nxe: bool = True
    ac: bool = False


@dataclass(frozen=True, slots=True)
class Walk:
    """Whether the access faults, and the error code if so."""

    fault: bool
    error_code: int = 0


def walk(entries: Sequence[int], access: str, user: bool, controls: Controls) -> Walk:
    """An access through the entries on its way, from the PML4's to the leaf's.

    An entry with HUGE at the second or third place is the leaf of a 1 GiB or
    2 MiB page; later ones are not looked at.
    """
    code = (2 if access == WRITE else 0) | (4 if user else 0)
    if access == FETCH and (controls.smep or controls.nxe):
        code |= 0x10
    writable, user_page, executable = True, True, True
    for level, entry in enumerate(entries):
        if not entry & PRESENT:
            return Walk(True, code)
        if _reserved(entry, level, controls):
            return Walk(True, code | 9)
        writable = writable and bool(entry & WRITABLE)
        user_page = user_page and bool(entry & USER)
        executable = executable and not entry & NX
        if entry & HUGE and level in (1, 2):
            break
    if user:
        allowed = user_page
        if access == WRITE:
            allowed = allowed and writable
    else:
        allowed = True
        if user_page and access == FETCH:
            allowed = not controls.smep
        elif user_page:
            allowed = not controls.smap or controls.ac
        if access == WRITE and controls.write_protect:
            allowed = allowed and writable
    if access == FETCH:
        allowed = allowed and executable
    return Walk(False) if allowed else Walk(True, code | 1)


def _reserved(entry: int, level: int, controls: Controls) -> bool:
    if entry & NX and not controls.nxe:
        return True
    if entry & HUGE:
        if level == 0:
            return True
        if level == 1:
            return bool(entry & (0x3FFF_E000 | _RESERVED_HIGH))
        if level == 2:
            return bool(entry & (0x001F_E000 | _RESERVED_HIGH))
    return bool(entry & _RESERVED_HIGH)


def access_case(flags: Sequence[int], access: str, user: bool, controls: Controls) -> SystemCase:
    """The access as a program. `flags` are the entries' bits beside their addresses.

    With HUGE the page begins at physical 0; `LEAF_AT` is a whole page of HLT.
    """
    targets = (*_TABLES[1:], LEAF_AT)
    memory = [(0, struct.pack(f"<{len(GDT)}Q", *GDT))]
    virtual = VIRTUAL
    for level, (table, target, bits) in enumerate(zip(_TABLES, targets, flags, strict=False)):
        huge = bits & HUGE and level in (1, 2)
        if huge:
            virtual += LEAF_AT
        slot = table + 8 * (VIRTUAL >> 39) if level == 0 else table
        memory.append((slot, struct.pack("<Q", bits if huge else target | bits)))
    memory.append((LEAF_AT, b"\xf4" * PAGE))
    memory += _own_tables()
    instruction = {
        READ: "mov al, [rbx]",
        WRITE: "mov byte ptr [rbx], 0xf4",
        FETCH: "jmp rbx",
    }[access]
    memory.append((_USER_CODE, assemble(f"{instruction}; hlt")))
    if user:
        enter = f"push 0x2b; push {_STACK}; push {2 | controls.ac * FLAG_BITS['AC']}; "
        enter += f"push 0x33; push {_USER_CODE}; iretq"
    else:
        enter = f"push {2 | controls.ac * FLAG_BITS['AC']}; popfq; {instruction}; hlt"
    memory.append((_CODE, assemble(enter)))
    return SystemCase(
        rip=_CODE,
        cr3=_TABLES[0],
        memory=tuple(memory),
        gpr={"rbx": virtual, "rsp": _STACK},
        cr0=CR0_LONG if controls.write_protect else CR0_LONG & ~CR0_WP,
        cr4=CR4_LONG | controls.smep * CR4_SMEP | controls.smap * CR4_SMAP,
        efer=EFER_LONG if controls.nxe else EFER_LONG & ~EFER_NXE,
        gdt_limit=8 * len(GDT) - 1,
        ram=_RAM,
    )


def _own_tables() -> list[tuple[int, bytes]]:
    """The program's identity mapping: supervisor pages, and one for user code."""
    pointer = PRESENT | WRITABLE | USER
    pages = [i * PAGE | PRESENT | WRITABLE for i in range(_RAM // PAGE)]
    pages[_USER_CODE // PAGE] |= USER
    return [
        (_TABLES[0], struct.pack("<Q", 0x2000 | pointer)),
        (0x2000, struct.pack("<Q", 0x3000 | pointer)),
        (0x3000, struct.pack("<Q", 0x4000 | pointer)),
        (0x4000, struct.pack(f"<{len(pages)}Q", *pages)),
    ]


def seen(outcome: SystemOutcome) -> Walk:
    """What an executor's outcome of `access_case` says about the access."""
    if outcome.vector == PF:
        return Walk(True, outcome.error_code)
    return Walk(False)
