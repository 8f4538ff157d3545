"""The doors between translated code, with guest registers in host registers, and all else.

Outside of it they lie in the vCPU's struct. The doors move them:

    x_enter    from the run loop into a block
    x_exit     from a block back to the run loop, which finds RIP in the struct
    x_slow     try again with a page of the TLB's second way, or pass on to x_miss
    x_miss     fill the TLB and try again, or interpret the instruction, then go on
    x_generic  run one instruction by its handler, already decoded, then go on
    x_seek     go on at RIP, for which the jump cache had no code

All but x_slow, which is a stencil, are IR written out, because the language has no calling
conventions.
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.caches import SECOND_TLB, TlbEntry, page_of_last, tlb_offset
from ringzero.jit.compile.module import Module
from ringzero.jit.host.x86_64 import CONVENTION
from ringzero.jit.stencil import (
    ACCESS_BASE,
    ACCESS_SIZE,
    ACCESS_WRITE,
    BY_POP,
    BY_PUSH,
    CPU_BIAS,
    Frame,
    StencilWriter,
    define_stencil,
)
from ringzero.jit.tables import SLOW_BEHIND_BITS, SLOW_OFFSET_BITS
from ringzero.native import NativeFunction, load, select, store, u64, v128

_READ, _WRITE = TlbEntry.offset_of("read"), TlbEntry.offset_of("write")
_VCPU = f" %vcpu = getelementptr i8, ptr %cpu, i64 -{CPU_BIAS}"


def define_doors(
    module: Module,
    frame: Frame,
    slow_step: NativeFunction[[Any], int],
    generic_step: NativeFunction[[Any], int],
    seek_step: NativeFunction[[Any], int],
) -> None:
    """Add the doors to a module.

    `slow_step(cpu)` and `generic_step(cpu)` run the instruction, `seek_step(cpu)` none. They
    return 0 to go on at the host address in `resume`, 1 to leave for the run loop.
    """
    for function in (slow_step, generic_step, seek_step):
        module.require(function)
    _define(
        module,
        "void @x_enter(ptr %vcpu, i64 %code)",
        f" %cpu = getelementptr i8, ptr %vcpu, i64 {CPU_BIAS}",
        *_addresses(frame),
        *_reload(frame),
        " %where = inttoptr i64 %code to ptr",
        f" call {CONVENTION} void %where({_arguments(frame)})",
    )
    _define(module, f"{CONVENTION} void @x_exit({frame.parameters})", _VCPU, *_spill(frame))
    define_stencil(module, "x_slow", frame, lambda b: swap_ways(StencilWriter(b, frame)))
    _define_step(module, frame, "x_miss", slow_step.name)
    _define_step(module, frame, "x_generic", generic_step.name)
    _define_step(module, frame, "x_seek", seek_step.name)


def swap_ways(m: StencilWriter) -> bool:
    """Write x_slow: pages that are used in turn, and share an entry, cost no more than this."""
    builder, cpu = m.builder, m.cpu
    near, there, step = (builder.fresh(name) for name in ("near", "there", "step"))
    access = cpu.slow_offset >> (SLOW_OFFSET_BITS + SLOW_BEHIND_BITS)
    # Behind the entries that never match there is no second way.
    builder.branch((access != 0) & (cpu.tlb != cpu.tlb_checked), near, step)
    builder.start(near)
    size = u64(1) << (access & ACCESS_SIZE)
    base = access & ACCESS_BASE
    top = m.register(m.frame.stack)
    where = select(base == BY_PUSH, top - size, select(base == BY_POP, top, cpu.slow_address))
    first = cpu.tlb + tlb_offset(where)
    second = first + SECOND_TLB
    tag = select((access & ACCESS_WRITE) != 0, u64(_WRITE), u64(_READ))
    page = page_of_last(where, size)
    found = (load(u64, second + tag) == page) & (load(u64, first + tag) != page)
    builder.branch(found, there, step)
    builder.start(there)
    for part in range(0, TlbEntry.size, 16):
        kept, other = load(v128, first, part), load(v128, second, part)
        store(v128, first, other, part)
        store(v128, second, kept, part)
    m.tail_member("resume", cpu.slow_address.ref)
    builder.start(step)
    m.tail_near("x_miss", m.arguments())
    return True


def _define(module: Module, head: str, *lines: str) -> None:
    module.define("\n".join([f"define {head} nounwind {{", *lines, " ret void", "}"]))


def _define_step(module: Module, frame: Frame, name: str, target: str) -> None:
    _define(
        module,
        f"{CONVENTION} void @{name}({frame.parameters})",
        _VCPU,
        *_spill(frame),
        f" %leaves = call i32 @{target}(ptr %vcpu)",
        " %stop = icmp ne i32 %leaves, 0",
        " br i1 %stop, label %out, label %on",
        "out:",
        " ret void",
        "on:",
        *_reload(frame),
        _member("rp", frame.cpu.offset_of("resume")),
        " %resume = load ptr, ptr %rp",
        _member("ap", frame.cpu.offset_of("slow_address")),
        " %address = load i64, ptr %ap",
        f" musttail call {CONVENTION} void %resume({_arguments(frame, '%address')})",
    )


def _member(name: str, offset: int) -> str:
    return f" %{name} = getelementptr i8, ptr %vcpu, i64 {offset}"


def _register(frame: Frame, number: int) -> str:
    return _member(f"p{number}", frame.cpu.offset_of("regs", number))


def _addresses(frame: Frame) -> list[str]:
    lines = [_member("bp", frame.cpu.offset_of("budget"))]
    return lines + [_register(frame, number) for number in frame.pinned]


def _spill(frame: Frame) -> list[str]:
    lines = [_member("bp", frame.cpu.offset_of("budget")), " store i64 %n, ptr %bp"]
    for number in frame.pinned:
        lines += [_register(frame, number), f" store i64 %g{number}, ptr %p{number}"]
    return lines


def _reload(frame: Frame) -> list[str]:
    lines = [" %n2 = load i64, ptr %bp"]
    return lines + [f" %r{number} = load i64, ptr %p{number}" for number in frame.pinned]


def _arguments(frame: Frame, temporary: str = "poison") -> str:
    return frame.arguments(lambda n: f"%r{n}", "%n2", temporary)
