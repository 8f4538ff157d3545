"""LLVM's assembler as a function."""

import pytest

from tests.oracle.assembler import AssemblyError, assemble
from tests.oracle.encodings import disassemble


@pytest.mark.parametrize(
    ("source", "mode", "code"),
    [
        ("add rax, rbx", 64, "4801d8"),
        ("aaa", 32, "37"),
        ("jmp here", 64, "ebfe"),
        ("mov eax, [esi + 4]", 32, "8b4604"),
    ],
)
def test_known_encodings(source, mode, code):
    assert assemble(source, mode).hex() == code


def test_absolute_addresses_of_labels():
    assert assemble("nop\nlabel: .quad label - here + ORIGIN", origin=0x1000)[1:] == (
        0x1001
    ).to_bytes(8, "little")


def test_foreign_symbols_are_refused():
    with pytest.raises(AssemblyError):
        assemble("call somewhere_else")


def test_capstone_agrees():
    assert disassemble(assemble("imul r9d, [r10 + rcx*4 - 8], 100")) == (
        "imul r9d, dword ptr [r10 + rcx*4 - 8], 0x64"
    )
