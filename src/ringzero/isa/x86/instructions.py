"""Loads every module that describes instructions, and freezes the table."""

from __future__ import annotations

import importlib

from ringzero.isa.x86.table import FORMS, Form

MODULES = (
    "integer",
    "bits",
    "control",
    "string",
    "far",
    "syscalls",
    "segments",
    "system",
    "msr",
    "rflags",
    "portio",
    "debug",
    "sse_move",
    "sse_integer",
    "sse_float",
    "sse_string",
    "mmx",
    "x87_arithmetic",
    "x87_move",
    "x87_control",
    "fpu_state",
    "cache_control",
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
