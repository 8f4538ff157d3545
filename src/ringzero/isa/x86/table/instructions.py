"""Loads every module that describes instructions, and freezes the table.

It has two parts: x86-64-v2, which all machines have, and what CPU models beyond it have. The
second part is compiled when a machine first wants it, so its forms come last.
"""

from __future__ import annotations

import importlib

from ringzero.isa.x86.table.forms import FORMS, Form

MODULES = (
    "insn.integer",
    "insn.bits",
    "insn.control",
    "insn.string",
    "privileged.far",
    "privileged.syscalls",
    "privileged.segments",
    "privileged.system",
    "privileged.msr",
    "privileged.rflags",
    "privileged.portio",
    "privileged.debug",
    "insn.sse_move",
    "insn.sse_integer",
    "insn.sse_float",
    "insn.sse_string",
    "insn.mmx",
    "insn.x87_arithmetic",
    "insn.x87_move",
    "insn.x87_control",
    "insn.fpu_state",
    "insn.cache_control",
)
# Those of the second part.
EXTENSIONS = (
    "insn.avx_integer",
    "insn.avx_float",
    "insn.avx_move",
    "insn.fma",
    "insn.gather",
    "insn.bmi",
    "insn.crypto",
    "insn.processor",
)


def all_forms(*, extended: bool = False) -> list[Form]:
    """Return every form of x86-64-v2, in an order that imports do not change.

    `extended`: behind them, those of the CPU models beyond it.
    """
    names = (*MODULES, *EXTENSIONS) if extended else MODULES
    order = {f"ringzero.isa.x86.{name}": n for n, name in enumerate(names)}
    for name in order:
        importlib.import_module(name)
    known = [form for form in FORMS if form.function.__module__ in order]
    known.sort(key=lambda form: order[form.function.__module__])
    for index, form in enumerate(known):
        form.index = index
    return known
