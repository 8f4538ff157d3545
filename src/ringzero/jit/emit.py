"""Puts stencils together into blocks: holes filled, stubs out of line, jumps to them.

Knows no guest: what an instruction becomes is the ISA's own (jit.x86.translate).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import PAGE_SHIFT
from ringzero.jit import tables
from ringzero.jit.host import x86_64 as host
from ringzero.jit.tables import (
    SLOW_BEHIND_BITS,
    SLOW_OFFSET_BITS,
    CodeSpace,
    Hole,
    Scratch,
    Stencil,
    Stub,
    Tables,
)
from ringzero.native import (
    i32,
    i64,
    load,
    native,
    pointer,
    select,
    staged,
    store,
    u32,
    u64,
    v128,
)

PAGE = 1 << PAGE_SHIFT
# `Scratch.branch` behind the last instruction of a block, which does not branch.
NO_BRANCH = PAGE
# Bytes in which stencils are copied.
COPY_STEP = 16
# Stub kinds; STUB_NONE is not wanted any more.
STUB_BUDGET, STUB_LINK, STUB_FAR, STUB_SLOW, STUB_NONE = range(5)


@staged
def space_of(s: Any) -> Any:
    """Return the code space that a thread translates into."""
    return pointer(CodeSpace, s.space)


@staged
def reserve(space: Any, size: Any) -> Any:
    """Return the host address of `size` bytes among the records, at a multiple of 16."""
    space.data = (space.data - size) & ~u64(15)
    return space.data


@staged
def exits_of(s: Any) -> Any:
    """Return the numbers of the exits' stencils."""
    return pointer(Tables, s.tables).exits


@native(inline="never")
def emit(s: Scratch, number: u32) -> None:
    """Append a stencil, its holes filled from `s.holes`."""
    known = pointer(Tables, s.tables)
    space = space_of(s)
    stencil = pointer(Stencil, known.stencils + u64(number) * Stencil.size)
    to = space.out
    s.first = to
    length = u64(stencil.length)
    source = known.blob + u64(stencil.code)
    done = u64(0)
    # In steps: the bytes beyond the end are overwritten by what follows.
    while done < length:
        store(v128, to + done, load(v128, source + done))
        done += COPY_STEP
    space.out = to + length
    s.holes[tables.NEXT] = to + length
    hole = known.holes + u64(stencil.first_hole) * Hole.size
    for _ in range(stencil.holes):
        fill_hole(s, pointer(Hole, hole), to)
        hole += Hole.size


@native
def fill_hole(s: Scratch, hole: Hole, to: u64) -> None:
    """Fill one hole of the stencil copied to `to`, or note a fix-up to a stub."""
    site = to + u64(hole.offset)
    what = hole.what
    if what == tables.TARGET:
        add_fixup(s, site, s.target_stub)
    elif what == tables.SLOW:
        if s.slow_stub == 0:
            s.slow_stub = 1 + add_stub(s, u32(STUB_SLOW), u32(0), u32(0))
            s.stubs[s.slow_stub - 1].resume = s.first
            s.stubs[s.slow_stub - 1].access = s.access
        elif s.stubs[s.slow_stub - 1].resume != s.first:
            # Two stencils come here: it is not told which.
            s.stubs[s.slow_stub - 1].access = 0
        add_fixup(s, site, s.slow_stub - 1)
    else:
        host.fill(site, hole.how, s.holes[u64(what)] + u64(i64(hole.addend)))


@staged
def stencil_length(s: Any, number: Any) -> Any:
    """Return how many bytes a stencil has."""
    known = pointer(Tables, s.tables)
    return u64(pointer(Stencil, known.stencils + u64(number) * Stencil.size).length)


@native
def add_fixup(s: Scratch, site: u64, stub: u32) -> None:
    """Note that the relative jump at `site` goes to a stub."""
    fixup = s.fixups[s.fixup_count]
    fixup.site = site
    fixup.stub = stub
    s.fixup_count += 1


@native
def add_stub(s: Scratch, kind: u32, offset: u32, refund: u32) -> u32:
    """Reserve a stub and return its number."""
    number = s.stub_count
    stub = s.stubs[number]
    stub.purpose = kind
    stub.offset = offset
    stub.refund = refund
    stub.resume = 0
    stub.unsettled = 0
    stub.branch = s.branch
    s.stub_count = number + 1
    return number


@native
def stub_length(s: Scratch, stub: Stub) -> u64:
    """Return how many bytes a stub has."""
    exits = exits_of(s)
    kind = stub.purpose
    length = u64(0)
    if stub.refund != 0:
        length += stencil_length(s, exits.refund)
    if stub.unsettled != 0:
        length += stencil_length(s, exits.unsettled)
    if kind == STUB_SLOW:
        length += stencil_length(s, exits.slow)
    elif kind == STUB_BUDGET:
        length += stencil_length(s, exits.leave)
    elif kind == STUB_LINK:
        length += stencil_length(s, exits.leave_linked)
    elif kind == STUB_FAR:
        length += stencil_length(s, exits.target[s.width])
        length += stencil_length(s, exits.dispatch[s.width])
    return length


@native(inline="never")
def emit_stubs(s: Scratch) -> None:
    """Write all stubs of the block among the records, and point its jumps at them.

    They run seldom: so code that runs lies close together.
    """
    exits = exits_of(s)
    space = space_of(s)
    size = u64(0)
    number = u32(0)
    while number < s.stub_count:
        size += stub_length(s, s.stubs[number])
        number += 1
    end = space.out
    # Copied in steps, stencils write beyond their end, where a record lies.
    space.out = reserve(space, size + COPY_STEP)
    s.stubs_start = space.out
    s.stubs_size = u32(size)
    number = u32(0)
    while number < s.stub_count:
        stub = s.stubs[number]
        stub.address = space_of(s).out
        kind = stub.purpose
        if stub.refund != 0:
            s.holes[tables.HC] = u64(stub.refund)
            emit(s, exits.refund)
        if stub.unsettled != 0:
            s.holes[tables.HC] = u64(stub.unsettled)
            emit(s, exits.unsettled)
        s.holes[tables.HO] = u64(stub.offset)
        s.holes[tables.HR] = stub.resume
        if kind == STUB_SLOW:
            s.holes[tables.HO] = slow_word(stub)
            emit(s, exits.slow)
        elif kind == STUB_BUDGET:
            emit(s, exits.leave)
        elif kind == STUB_LINK:
            emit(s, exits.leave_linked)
        elif kind == STUB_FAR:
            emit_far(s, stub.offset, stub.branch)
        number += 1
    space.out = end
    index = u32(0)
    while index < s.fixup_count:
        fixup = s.fixups[index]
        host.direct(fixup.site, s.stubs[fixup.stub].address)
        index += 1


@staged
def slow_word(stub: Any) -> Any:
    """Return what a slow stub tells (see `tables.SLOW_OFFSET_BITS`)."""
    behind = u64(stub.behind) << SLOW_OFFSET_BITS
    access = u64(stub.access) << (SLOW_OFFSET_BITS + SLOW_BEHIND_BITS)
    return u64(stub.offset) | behind | access


@native(inline="never")
def emit_far(s: Scratch, offset: u32, branch: u32) -> None:
    """Append a jump to a target outside the page, by its offset from the page's start."""
    s.holes[tables.HD] = u64(i64(i32(offset)))
    emit(s, exits_of(s).target[s.width])
    emit_dispatch(s, branch)


@staged
def emit_dispatch(s: Any, branch: Any) -> None:
    """Append a jump to the address in the temporary, for the branch at an in-page offset."""
    s.holes[tables.HF] = u64(branch)
    emit(s, exits_of(s).dispatch[s.width])


@native
def set_target(s: Scratch, offset: u32, unsettled: u32) -> None:
    """Make the next TARGET go to an in-page offset, or to one outside.

    `unsettled` are the instructions there until the guest's flags hold (see `Stub`).
    """
    kind = select(offset < PAGE, u32(STUB_LINK), u32(STUB_FAR))
    stub = add_stub(s, kind, offset, u32(0))
    s.stubs[stub].unsettled = unsettled
    s.target_stub = stub


@native
def emit_goto(s: Scratch, offset: u32, unsettled: u32) -> None:
    """Append an unconditional jump to an offset from the page's start, as for `set_target`."""
    if offset < PAGE:
        set_target(s, offset, unsettled)
        emit(s, exits_of(s).goto)
        # A link replaces the displacement of this jump.
        link_stub(s)
    else:
        emit_far(s, offset, s.branch)


@native
def link_stub(s: Scratch) -> u64:
    """Tell the last target's stub which jump leads to it; return where its displacement lies.

    That is the last one noted for it; fix-ups of the slow path may have come in between.
    """
    index = s.fixup_count
    while index != 0:
        index -= 1
        fixup = s.fixups[index]
        if fixup.stub == s.target_stub:
            s.stubs[s.target_stub].resume = fixup.site
            return fixup.site
    return u64(0)


@native(inline="never")
def follow_far(s: Scratch) -> None:
    """Append the way to the last target, outside of the page, right behind the jump to it.

    A jump that ends the code goes, as what it leads to follows.
    """
    stub = s.stubs[s.target_stub]
    site = link_stub(s)
    space = space_of(s)
    last = s.fixups[s.fixup_count - 1]
    if last.site == site and host.ends_in_jump(site, space.out):
        space.out -= host.JUMP_LENGTH
        s.fixup_count -= 1
        stub.purpose = STUB_NONE
        emit_far(s, stub.offset, stub.branch)


@native(inline="never")
def begin_block(s: Scratch, start: u32, instructions: u32, unsettled: u32) -> None:
    """Append a block's head: it leaves when the budget has no room for so many instructions.

    Who comes to it may have left flags out for as many instructions as are `unsettled`.
    """
    s.stub_count = 0
    s.fixup_count = 0
    s.slow_stub = 0
    s.target_stub = add_stub(s, u32(STUB_BUDGET), start, instructions)
    s.stubs[s.target_stub].unsettled = unsettled
    s.holes[tables.HC] = u64(instructions)
    emit(s, exits_of(s).head)


@staged
def pay(s: Any, instructions: Any) -> None:
    """Append what takes a number of instructions from the budget."""
    s.holes[tables.HC] = u64(0) - u64(instructions)
    emit(s, exits_of(s).refund)


@staged
def emit_interpreted(s: Any, offset: Any) -> None:
    """Append what runs the instruction at an in-page offset by the interpreter, and leaves."""
    s.holes[tables.HO] = u64(offset)
    s.holes[tables.HR] = u64(0)
    emit(s, exits_of(s).slow)


@staged
def emit_handled(s: Any, insn: Any) -> None:
    """Append a call of the handler for the decoded instruction at a host address."""
    number = exits_of(s).generic
    s.holes[tables.HG] = insn
    s.holes[tables.HR] = space_of(s).out + stencil_length(s, number)
    emit(s, number)


@staged
def resume_behind(s: Any, offset: Any, ended: Any) -> None:
    """Tell the slow path of the instruction at an in-page offset where to go on."""
    if s.slow_stub != 0:
        stub = s.stubs[s.slow_stub - 1]
        stub.offset = offset
        # After an instruction that ends the block the run loop finds the way.
        stub.behind = select(ended, u32(0), u32(space_of(s).out - stub.resume))
