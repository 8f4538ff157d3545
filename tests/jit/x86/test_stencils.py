"""Which instructions have stencils, and what these ask of the flags before them."""

import functools

import pytest

from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.compile.module import Module
from ringzero.jit.stencil import WEIGHTS
from ringzero.jit.x86 import tables
from ringzero.jit.x86.catalogue import Catalogue, define_key

# Absolute addresses (letter O) and MMX operands (P, Q, N) are left to handlers.
BY_HANDLER = frozenset("OPQN")


@functools.cache
def catalogue():
    return Catalogue()


def generated(mnemonic, *operands):
    """Return what is known of the 32-bit stencil of a form, by its operands' names."""
    number, key = next(
        (n, k)
        for n, k in enumerate(catalogue().keys)
        if k.form.mnemonic == mnemonic
        and k.size == 32
        and tuple(o.fixed or o.letter + o.size for o in k.form.operands) == operands
    )
    module = Module("one")
    module.define(WEIGHTS)
    return define_key(module, number, key)


def test_spilled_registers():
    """No stencil of theirs can fault, which would leave the registers moved."""
    keys = catalogue().keys
    assert len(keys) <= tables.KEY_MASK
    spilled = [n for n, key in enumerate(keys) if key.spilled]
    assert spilled
    module = Module("some")
    for n in spilled:
        made = define_key(module, n, keys[n])
        assert made is not None and not made.slow
        assert made.moves & tables.SPILLED and made.moves & 3 * tables.STORED_FIRST


def test_a_register_is_stored_or_always_written():
    """BSR of 0 leaves its target as it was; MOVZX never does."""
    first = tables.STORED_FIRST
    moves = {}
    for name, bits in (("bsr", 32), ("movzx", 64)):
        n = next(
            n
            for n, key in enumerate(catalogue().keys)
            if key.spilled and key.form.mnemonic == name and key.size == bits
        )
        moves[name] = define_key(Module("one"), n, catalogue().keys[n]).moves
    assert moves["bsr"] & first and not moves["movzx"] & first
    for found in moves.values():
        assert found & 3 * tables.LOADED_FIRST == tables.LOADED_FIRST


def test_which_register_is_tested_with_which_makes_no_difference():
    tests = [key for key in catalogue().keys if key.form.mnemonic == "test" and key.size == 64]
    pairs = [k for k in tests if [b.kind for b in k.bindings] == ["pinned"] * 2]
    assert len(pairs) == tables.PINNED_REGISTERS * (tables.PINNED_REGISTERS + 1) // 2


def test_every_fast_form_has_a_way_to_be_lowered():
    lowered = {lowering.form.index for lowering in catalogue().lowerings}
    missing = [
        form.text
        for form in all_forms()
        if form.attributes.get("fast")
        and not any(o.letter in BY_HANDLER for o in form.operands)
        and form.index not in lowered
    ]
    assert not missing


@pytest.mark.parametrize(
    ("mnemonic", "operands"),
    [("cmp", ("rAX", "Iz")), ("test", ("rAX", "Iz")), ("shl", ("Ev", "CL")), ("sar", ("Ev", "1"))],
)
def test_forms_with_a_fixed_operand_are_stencils(mnemonic, operands):
    assert generated(mnemonic, *operands) is not None


@pytest.mark.parametrize("mnemonic", ["rol", "ror"])
def test_a_rotation_whose_flags_are_dead_does_not_compute_those_before(mnemonic):
    known = generated(mnemonic, "Ev", "Ib")
    assert known.flags.needs_status
    assert not known.dead.needs_status


@pytest.mark.parametrize("mnemonic", ["inc", "dec"])
def test_increments_read_the_carry_only_to_keep_it(mnemonic):
    known = generated(mnemonic, "Ev")
    assert known.flags.needs_carry
    assert not known.dead.needs_carry


def test_a_sum_with_carry_reads_it_always():
    assert generated("adc", "Ev", "Gv").dead.needs_carry
