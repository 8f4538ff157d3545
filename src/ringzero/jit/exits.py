"""Stencils by which blocks begin, jump and are left; they are the same for every guest.

They want of a vCPU's struct: rip, page_base, jump_cache, what they leave there for the
run loop (link_site, slow_offset, resume, generic_insn, branch_offset, unsettled), and where the
doors are (exit_code, seek_code, slow_code, generic_code; see jit.doors).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ringzero.isa.caches import PAGE_MASK, TAG_32, JumpCacheEntry, jump_index
from ringzero.jit.stencil import LIKELY, UNLIKELY, Body, StencilWriter, plain
from ringzero.native import pointer, signed, u32, u64


def exits() -> dict[str, Body]:
    """Return the bodies of the exits by name; those of tables.Exits."""
    return {
        "head": head,
        "refund": refund,
        "leave": leave,
        "leave.linked": leave_linked,
        "unsettled": plain(lambda m: m.put("unsettled", u32(m.hole("HC")))),
        "slow": slow,
        "generic": generic,
        "goto": goto,
        "dispatch64": dispatch(0),
        "dispatch32": dispatch(TAG_32),
        "target": plain(lambda m: m.cpu.page_base + m.hole("HD")),
        "target32": plain(lambda m: u64(u32(m.cpu.page_base + m.hole("HD")))),
    }


def members(numbers: Callable[[str], int]) -> dict[str, list[int]]:
    """Return each member of tables.Exits, given what numbers the stencils have."""
    single = ("head", "refund", "leave", "unsettled", "slow", "generic", "goto")
    return {
        **{name: [numbers(name)] for name in single},
        "leave_linked": [numbers("leave.linked")],
        "target": [numbers("target"), numbers("target32")],
        "dispatch": [numbers("dispatch64"), numbers("dispatch32")],
    }


def head(m: StencilWriter) -> None:
    """Begin a block: take its instructions from the budget, or leave."""
    builder = m.builder
    left: Any = m.budget - m.hole("HC")
    spent, go = builder.fresh("spent"), builder.fresh("go")
    builder.branch(signed(64)(left) < 0, spent, go, UNLIKELY)
    arguments = m.arguments(budget=left.ref)
    builder.start(spent)
    m.tail("TARGET", arguments)
    builder.start(go)
    m.tail("NEXT", arguments)


def refund(m: StencilWriter) -> None:
    """Leave a block early or before it began: give back instructions not run."""
    left = m.budget + m.hole("HC")
    m.tail("NEXT", m.arguments(budget=left.ref))


def leave(m: StencilWriter) -> None:
    """Exit to the run loop with RIP inside this page."""
    m.put("rip", m.cpu.page_base + m.moved_hole("HO", wide=False))
    m.tail_member("exit_code")


def leave_linked(m: StencilWriter) -> None:
    """The same, and tell which jump would go there directly."""
    m.put("rip", m.cpu.page_base + m.moved_hole("HO", wide=False))
    m.put("link_site", m.hole("HR"))
    m.tail_member("exit_code")


def slow(m: StencilWriter) -> None:
    """Have the TLB filled and the stencil tried again, or its instruction interpreted."""
    m.put("slow_address", m.temporary)
    m.put("slow_offset", m.hole("HO"))
    m.put("resume", m.hole("HR"))
    m.tail_member("slow_code")


def generic(m: StencilWriter) -> None:
    """Call the handler of a decoded instruction, then go on."""
    m.put("generic_insn", m.hole("HG"))
    m.put("resume", m.hole("HR"))
    m.tail_member("generic_code")


def goto(m: StencilWriter) -> None:
    """Jump inside the page."""
    m.tail("TARGET", m.arguments())


def dispatch(tag_bit: int) -> Body:
    """Return the body of a dispatch; `tag_bit` is set in the tags of code of its width."""

    def body(m: StencilWriter) -> None:
        """Go to the address in the temporary: by the jump cache, else by the door that seeks."""
        builder = m.builder
        target: Any = m.temporary
        tag = target | tag_bit
        index = jump_index(target)
        where = m.cpu.jump_cache + index * JumpCacheEntry.size
        entry = pointer(JumpCacheEntry, where)
        hit, miss = builder.fresh("hit"), builder.fresh("miss")
        builder.branch(entry.address == tag, hit, miss, LIKELY)
        builder.start(hit)
        m.put("page_base", target & ~PAGE_MASK)
        m.tail_address(entry.code)
        builder.start(miss)
        m.put("rip", target)
        if not tag_bit:
            m.put("branch_offset", m.hole("HF"))
        m.tail_member("seek_code")

    return body
