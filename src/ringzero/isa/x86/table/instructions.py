"""Loads every module that describes instructions, and freezes the table."""

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


def all_forms() -> list[Form]:
    """Return every form of the instruction set, in an order that imports do not change."""
    order = {f"ringzero.isa.x86.{name}": n for n, name in enumerate(MODULES)}
    for name in order:
        importlib.import_module(name)
    FORMS.sort(key=lambda form: order[form.function.__module__])
    for index, form in enumerate(FORMS):
        form.index = index
    return FORMS
