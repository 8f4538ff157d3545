"""The decoder's tables: what each encoding leads to, and that two claims are an error."""

import dataclasses

import pytest

from ringzero.isa.x86.table.decoder import GROUP, build_tables, opcode_index
from ringzero.isa.x86.table.instructions import all_forms

NONE, P66, PF3, PF2 = 0, 1, 2, 3


@pytest.fixture(scope="module")
def forms():
    return all_forms()


@pytest.fixture(scope="module")
def tables(forms):
    return build_tables(forms)


def lookup(forms, tables, opcode, modrm=0xC0, *, mode64=True, prefix=NONE, opcode_map=0):
    entry = tables.opcodes[opcode_index(mode64, prefix, opcode_map, opcode)]
    if entry & GROUP:
        entry = tables.groups[(entry & ~GROUP) * 256 + modrm]
    return forms[entry - 1].mnemonic if entry else None


@pytest.mark.parametrize(
    ("opcode", "keywords", "mnemonic"),
    [
        (0x99, {"prefix": P66}, "cdq"),
        (0xCC, {}, "int3"),
        (0x01, {"modrm": 0xD8}, "add"),
        (0x83, {"modrm": 0xF8}, "cmp"),
        (0x83, {"modrm": 0xE8}, "sub"),
        (0xFF, {"modrm": 0xE0}, "jmp"),
        (0xFF, {"modrm": 0x30}, "push"),
        (0xFF, {"modrm": 0xF8}, None),
        (0x06, {}, None),
        (0x06, {"mode64": False}, "push"),
        (0x27, {"mode64": False}, "daa"),
        (0x27, {}, None),
        (0xA2, {"opcode_map": 1}, "cpuid"),
        (0x0B, {"opcode_map": 1}, "ud2"),
        (0x0A, {"opcode_map": 1}, None),
        (0x58, {"opcode_map": 1}, "addps"),
        (0x58, {"opcode_map": 1, "prefix": P66}, "addpd"),
        (0x58, {"opcode_map": 1, "prefix": PF3}, "addss"),
        (0x58, {"opcode_map": 1, "prefix": PF2}, "addsd"),
        (0xF1, {"opcode_map": 2, "prefix": PF2}, "crc32"),
        (0x0F, {"opcode_map": 3, "prefix": P66}, "palignr"),
    ],
)
def test_encodings(forms, tables, opcode, keywords, mnemonic):
    assert lookup(forms, tables, opcode, **keywords) == mnemonic


def test_indices_are_places_in_the_list(forms):
    assert [form.index for form in forms] == list(range(len(forms)))
    assert len(forms) < GROUP


def test_every_form_is_reached(forms, tables):
    reached = {e for e in tables.opcodes if e and not e & GROUP} | set(tables.groups)
    assert {form.index + 1 for form in forms} <= reached


def test_overlap_is_an_error(forms):
    twin = next(form for form in forms if form.mnemonic == "cpuid")
    copy = dataclasses.replace(twin, index=len(forms))
    with pytest.raises(Exception, match=r"overlapping encodings: cpuid .*cpuid") as caught:
        build_tables([*forms, copy])
    assert type(caught.value).__name__ == "TableError"


def test_overlap_at_one_modrm_is_an_error(forms):
    group = next(f for f in forms if f.mnemonic == "jmp" and f.text.startswith("FF /4"))
    copy = dataclasses.replace(group, index=len(forms))
    with pytest.raises(Exception, match=r"overlapping encodings: .* at ModRM"):
        build_tables([*forms, copy])
