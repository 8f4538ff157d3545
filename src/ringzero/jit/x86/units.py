"""How x86's engine is cut into units that are compiled on their own, side by side.

Each module of instruction semantics is one unit: its handlers and its native
functions. All other native functions are the unit `core`. What goes beyond x86-64-v2 are
units of their own (`EXTENSION_NAMES`), which an engine of x86-64-v2 is completed with.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from pathlib import Path

from ringzero.isa.x86.execution import EXECUTION
from ringzero.isa.x86.interpreter import interpret
from ringzero.isa.x86.table.decoder import build_tables, entry_flags, immediates
from ringzero.isa.x86.table.entry import SLOTS, FormEntry
from ringzero.isa.x86.table.forms import Form
from ringzero.isa.x86.table.instructions import EXTENSIONS, MODULES, all_forms
from ringzero.jit.compile.llvm import INLINED, Target, cached_object
from ringzero.jit.compile.module import Module
from ringzero.jit.doors import define_doors
from ringzero.jit.entry import define_entry
from ringzero.jit.x86.handlers import define_handlers
from ringzero.jit.x86.operands import FRAME
from ringzero.jit.x86.runtime import generic_step, run_blocks, seek_step, slow_step
from ringzero.native.functions import NATIVE_FUNCTIONS

_PACKAGE = "ringzero.isa.x86."
# What is at home in the engine: x86's own, and the modules that every ISA shares.
_OWN, _SHARED = (_PACKAGE, "ringzero.jit."), "ringzero.isa"
# Symbols that Python calls, or takes the address of.
RUN_INTERPRETER = "run_interpreter"
RUN_TRANSLATOR = "run_translator"
# Units that take most of the time to compile, in this order: a second or more each.
_SLOWEST = (
    *("insn.integer", "core", "insn.sse_float", "insn.sse_integer", "insn.x87_arithmetic"),
    *("insn.mmx", "insn.x87_move", "insn.control"),
)
# Units that spend their time in loops.
LOOPS = ("core", "insn.string", "insn.sse_string")
# All of them, the slowest to compile first; those of the extensions likewise.
NAMES = (*_SLOWEST, *(module for module in MODULES if module not in _SLOWEST))
EXTENSION_NAMES = EXTENSIONS


@dataclass(frozen=True)
class Unit:
    """A compiled partition: its object, and which decoder slot each handler serves."""

    name: str
    code: bytes
    places: list[tuple[int, int]]


def home_of(module: str) -> str | None:
    """Return the unit in which native functions of a Python module are compiled.

    None for those of another ISA, and of programs that import this one.
    """
    if not module.startswith(_OWN) and module.rpartition(".")[0] != _SHARED:
        return None
    name = module.removeprefix(_PACKAGE)
    return name if name in NAMES or name in EXTENSION_NAMES else "core"


def forms_of(name: str) -> list[Form]:
    """Return the forms that a unit has handlers for."""
    extended = name in EXTENSION_NAMES
    return [f for f in all_forms(extended=extended) if f.function.__module__ == _PACKAGE + name]


def generate(name: str) -> tuple[Module, list[tuple[int, int]]]:
    """Generate the IR of one unit."""
    all_forms(extended=name in EXTENSION_NAMES)
    homes = {f.function.__module__ for f in NATIVE_FUNCTIONS}
    module = Module(name, home={m for m in homes if home_of(m) == name})
    places: list[tuple[int, int]] = []
    if name == "core":
        define_entry(module, RUN_INTERPRETER, EXECUTION, interpret)
        define_entry(module, RUN_TRANSLATOR, EXECUTION, run_blocks)
        define_doors(module, FRAME, slow_step, generic_step, seek_step)
    else:
        places = define_handlers(module, forms_of(name))
    for function in NATIVE_FUNCTIONS:
        if home_of(function.function.__module__) == name and function.inline != "always":
            module.require(function)
    return module, places


def compile_unit(name: str, target: Target | None = None) -> Unit:
    """Generate and compile one unit, for this host's CPU by default."""
    module, places = generate(name)
    # Handlers have no loops but in these units.
    passes = () if name in LOOPS else INLINED
    return Unit(name, cached_object(module.text(), passes=passes, target=target), places)


def write_unit(unit: Unit, directory: Path) -> None:
    """Write NAME.o and NAME.places of a unit."""
    (directory / f"{unit.name}.o").write_bytes(unit.code)
    (directory / f"{unit.name}.places").write_text(json.dumps(unit.places))


def write_tables(work: Path, *, extended: bool = False) -> None:
    """Write the decoder's tables, with handlers as indices into all units' arrays in order."""
    forms = all_forms(extended=extended)
    tables = build_tables(forms)
    (work / "opcodes.bin").write_bytes(tables.opcodes.tobytes())
    (work / "groups.bin").write_bytes(tables.groups.tobytes())
    words = FormEntry.size // 8
    entries = array("Q", bytes(FormEntry.size * len(forms)))
    # Index + 1 into the concatenated handler arrays; 0: no handler.
    number = 0
    for name in (*NAMES, *EXTENSION_NAMES) if extended else NAMES:
        for form, slot in json.loads((work / f"{name}.places").read_text()):
            number += 1
            entries[form * words + slot] = number
    for form in forms:
        first, second = immediates(form)
        entries[form.index * words + SLOTS] = entry_flags(form) | first << 32 | second << 40
    (work / "forms.bin").write_bytes(entries.tobytes())
    (work / "names.json").write_text(json.dumps([f.mnemonic for f in forms]))
    needs = {f.index: f.attributes["needs"] for f in forms if "needs" in f.attributes}
    (work / "needs.json").write_text(json.dumps(needs))
