"""Random instructions of some modules, on the host CPU and on the interpreter."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import replace

from ringzero.isa.x86.table.forms import Form
from ringzero.isa.x86.table.instructions import all_forms
from tests.oracle import compare, encodings
from tests.oracle.cases import Generator
from tests.oracle.model import AC, GP, PF, SS, XM, Case, Executor, Outcome
from tests.oracle.native import Native
from tests.oracle.soft import Soft

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
MAPS = {0: b"", 1: b"\x0f", 2: b"\x0f\x38", 3: b"\x0f\x3a"}
MXCSR_UE, MXCSR_PE, MXCSR_UM = 0x10, 0x20, 0x800
# Instructions whose operand is so long that processors differ in where they touch it first.
LONG = frozenset(
    ("fxsave", "fxsave64", "fxrstor", "fxrstor64", "fnsave", "frstor", "fnstenv", "fldenv")
)
_BATCH = 2000


@functools.cache
def forms_of(module: str) -> tuple[Form, ...]:
    """The table's forms that a module of semantics describes."""
    return tuple(f for f in all_forms() if f.function.__module__.rpartition(".")[2] == module)


@functools.cache
def _by_opcode() -> dict[bytes, list[Form]]:
    found: dict[bytes, list[Form]] = {}
    for form in all_forms():
        found.setdefault(MAPS[form.opcode_map] + bytes([form.opcode]), []).append(form)
    return found


def form_of(code: bytes, mode: int) -> Form | None:
    """The form that an instruction's bytes select."""
    at, prefixes = 0, set()
    while code[at] in b"\x66\xf2\xf3\x2e\x36\x3e\x26\x64\x65\x67\xf0":
        prefixes.add(code[at])
        at += 1
    at += mode == 64 and code[at] & 0xF0 == 0x40
    size = 1 if code[at] != 0x0F else 3 if code[at + 1] in (0x38, 0x3A) else 2
    modrm = code[at + size] if at + size < len(code) else 0
    prefix = next((p for p in (0xF3, 0xF2, 0x66) if p in prefixes), 0)
    matching = [
        f
        for f in _by_opcode().get(code[at : at + size], ())
        if not f.has_modrm or f.matches_modrm(modrm)
    ]
    exact = [f for f in matching if f.prefix == prefix]
    loose = [f for f in matching if f.prefix is None]
    return (exact or loose or [None])[0]


def cases_of(module: str, mode: int, seed: int, per_form: int) -> list[Case]:
    """Random cases of a module's instructions."""
    opcodes = {MAPS[f.opcode_map] + bytes([f.opcode]) for f in forms_of(module)}
    forms = [f for f in encodings.enumerate_forms(mode) if f.opcode in opcodes]
    cases = Generator(seed).cases(forms, per_form)
    mine = set(map(id, forms_of(module)))
    return [case for case in cases if id(form_of(case.code, mode)) in mine]


def run_native(cases: list[Case]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with Native() as native:
        for start in range(0, len(cases), _BATCH):
            outcomes += native.run(cases[start : start + _BATCH])
    return outcomes


@functools.cache
def interpreter() -> Executor:
    return Soft("run_interpreter")


@functools.cache
def translator() -> Executor:
    """The translator, which here translates whatever it meets at once."""
    soft = Soft("run_translator")
    soft.vm.code.hot = 0
    return soft


def _is_about_segments(case: Case, expected: Outcome) -> bool:
    """Whether the outcome hangs on segments or alignment checks, which have tests of their own."""
    overridden = case.mode == 32 and any(p in case.code[:4] for p in (0x64, 0x65))
    return expected.vector in (SS, AC) or overridden


def _tolerant(case: Case, expected: Outcome, got: Outcome) -> Outcome:
    """`got`, with what is known to differ between processors taken from `expected`."""
    if case.mnemonic in LONG and expected.vector == got.vector == PF:
        return replace(got, address=expected.address)
    return got


def _underflow_unmasked(case: Case, expected: Outcome) -> bool:
    """Whether PE beside an unmasked UE makes the difference (see isa.x86.mxcsr)."""
    return expected.vector == XM and not case.state.mxcsr & MXCSR_UM


def mismatches(cases: list[Case], soft: Executor) -> Iterator[str]:
    """Explanations of the cases whose outcomes differ on `soft`."""
    for case, expected in zip(cases, run_native(cases), strict=True):
        if not compare.comparable(expected, expected) or _is_about_segments(case, expected):
            continue
        got = _tolerant(case, expected, soft.run([case])[0])
        differences = compare.compare(expected, got, case)
        if _underflow_unmasked(case, expected):
            differences = [d for d in differences if not d.startswith("mxcsr")]
        # An operand that wraps around 4 GiB is beyond the segment's limit.
        if differences and not (case.mode == 32 and (expected.vector, got.vector) == (GP, PF)):
            yield compare.explain(expected, got, case)
