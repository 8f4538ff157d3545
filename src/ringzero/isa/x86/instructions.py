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
    "sse_move",
    "sse_integer",
    "sse_float",
    "sse_string",
    "mmx",
    "cache_control",
)


def all_forms() -> list[Form]:
    """Return every form of the instruction set, in a stable order."""
    for name in MODULES:
        importlib.import_module(f"ringzero.isa.x86.{name}")
    return FORMS
