"""Stencil objects as LLVM writes them, and objects that are none."""

import pytest

from ringzero.errors import EngineError
from ringzero.jit.compile.llvm import compile_object
from ringzero.jit.host.elf import R_PLT32, Function, read_functions

pytestmark = pytest.mark.engine
TWO = """
declare i64 @outside(i64)
@hole = external global i8
define i64 @first(i64 %x) nounwind {
 %y = add i64 %x, 7
 ret i64 %y
}
define i64 @second(i64 %x) nounwind {
 %y = call i64 @outside(i64 %x)
 %z = add i64 %y, ptrtoint (ptr @hole to i64)
 ret i64 %z
}
"""


@pytest.fixture(scope="module")
def functions():
    return read_functions(compile_object(TWO, relocation="static"))


def test_functions_in_order(functions):
    assert [f.name for f in functions] == ["first", "second"]
    assert all(isinstance(f, Function) for f in functions)
    # add rax/lea with the constant 7, and a return.
    assert functions[0].code.endswith(b"\xc3")
    assert b"\x07" in functions[0].code


def test_relocations_belong_to_their_function(functions):
    first, second = functions
    assert first.relocations == ()
    assert {r.symbol for r in second.relocations} == {"outside", "hole"}
    call = next(r for r in second.relocations if r.symbol == "outside")
    assert (call.kind, call.addend) == (R_PLT32, -4)
    for relocation in second.relocations:
        assert 0 <= relocation.offset <= len(second.code) - 4
    assert second.code[call.offset - 1] == 0xE8


def test_the_code_runs_nowhere_else_than_it_says(functions):
    """Offsets of relocations are from the function's start: the places hold zeros."""
    _, second = functions
    for relocation in second.relocations:
        assert second.code[relocation.offset : relocation.offset + 4] == bytes(4)


def test_what_is_no_object():
    with pytest.raises(EngineError, match="not an ELF object"):
        read_functions(b"MZ" + bytes(200))
