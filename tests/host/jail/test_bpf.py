"""The assembler of filters, against a reading of the rules themselves, by a BPF machine here."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import InvalidValueError
from ringzero.host.jail.bpf import (
    ALLOW,
    ALWAYS,
    ARCH_X86_64,
    ERRNO,
    KILL_PROCESS,
    Refusal,
    Where,
    assemble,
)
from ringzero.host.jail.calls import NUMBERS

DENY = ERRNO | 1
WORDS = st.sampled_from([0, 1, 2, 0x10000, 0xFFFFFFFF, 1 << 32, (1 << 64) - 1, 0x7E020000])
CONDITIONS = st.builds(Where, st.integers(0, 5), WORDS, WORDS)
RULES = st.one_of(
    st.just(ALWAYS),
    st.builds(Refusal, st.just(ERRNO | 38)),
    st.lists(st.lists(CONDITIONS, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
)


def run(program, number, arguments, arch=ARCH_X86_64):
    """Return what a filter answers: the classic machine, as far as the assembler uses it."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", program))
    at, word = 0, 0
    while True:
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, k)
        elif code == 0x54:
            word &= k
        elif code == 0x05:
            at += k
        elif code == 0x15:
            at += yes if word == k else no
        elif code == 0x35:
            at += yes if word >= k else no
        else:
            assert code == 0x06
            return k


def read(rule, arguments):
    """Return what a rule says."""
    if isinstance(rule, Refusal):
        return rule.action
    for alternative in rule:
        if all(arguments[w.index] & w.mask == w.value & w.mask for w in alternative):
            return ALLOW
    return DENY


@given(
    st.dictionaries(st.sampled_from([f"c{n}" for n in range(12)]), RULES),
    st.integers(0, 14),
    st.tuples(*[WORDS] * 6),
)
def test_the_filter_answers_as_its_rules_read(rules, number, arguments):
    program = assemble(rules, {f"c{n}": n for n in range(12)}, DENY)
    rule = rules.get(f"c{number}", ())
    assert run(program, number, arguments) == read(rule, arguments)


def test_calls_of_another_instruction_set_end_the_process_and_x32_is_refused():
    program = assemble({"read": ALWAYS}, NUMBERS, DENY)
    assert run(program, 0, [0] * 6) == ALLOW
    assert run(program, 0, [0] * 6, arch=0x40000003) == KILL_PROCESS
    assert run(program, 0x40000000, [0] * 6) == DENY


def test_a_call_that_nobody_knows_is_refused_at_once():
    with pytest.raises(InvalidValueError, match="nosuchcall"):
        assemble({"nosuchcall": ALWAYS}, NUMBERS, DENY)
