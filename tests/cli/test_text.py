"""What a guest says, on the user's terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.cli.text import TerminalFilter, printable

# What a terminal answers (ECMA-48, xterm's control sequences, kitty's keyboard protocol).
QUERIES = [
    b"\x05", b"\x1bZ", b"\x1b[c", b"\x1b[0c", b"\x1b[>c", b"\x1b[>0c", b"\x1b[=c", b"\x1b[5n",
    b"\x1b[6n", b"\x1b[?6n", b"\x1b[?15n", b"\x1b[x", b"\x1b[1x", b"\x1b[14t", b"\x1b[18t",
    b"\x1b[21t", b"\x1b[14;2t", b"\x1b[?25$p", b"\x1b[4$p", b"\x1b[?u", b"\x1b[>q", b"\x1b[>0q",
    b"\x1b[?4m", b"\x1b]10;?\x07", b"\x1b]11;?\x1b\\", b"\x1b]4;1;?\x07", b"\x1b]52;c;?\x07",
    b"\x1b]52;c;aGk=\x07", b"\x1bP$qm\x1b\\", b"\x1bP+q544e\x1b\\", b"\x1b_Gi=1,a=q;AA\x1b\\",
    "\x9bc".encode(), "\x9b6n".encode(), "\x90$qm\x1b\\".encode(), "\x9d11;?\x07".encode(),
]  # fmt: skip
HARMLESS = [
    b"plain\r\n", b"\x1b[31mred\x1b[0m", b"\x1b[2J\x1b[H", b"\x1b[?25l", b"\x1b[10;20r",
    b"\x1b]0;title\x07", "täxt ěc é".encode(), b"\x1b[K\x1b[A", b"\t\x08\x07", b"\x1b(B",
    b"\x1b[8;24;80t", b"\xff\xc4\x9bc",
]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
def test_queries_are_left_out_however_they_are_cut(query):
    data = b"before" + query + b"after\n"
    for cut in range(len(data) + 1):
        taken = TerminalFilter()
        shown = taken.feed(data[:cut]) + taken.feed(data[cut:]) + taken.end()
        assert shown == b"beforeafter\n", cut


@pytest.mark.parametrize("text", HARMLESS)
def test_the_rest_is_shown(text):
    for cut in range(len(text) + 1):
        taken = TerminalFilter()
        shown = taken.feed(text[:cut]) + taken.feed(text[cut:] + b"x") + taken.end()
        assert shown == text + b"x", cut


def test_what_never_ends_is_no_sequence():
    taken = TerminalFilter()
    text = b"\x1b]0;" + b"a" * 100_000
    shown = b"".join(taken.feed(text[at : at + 1000]) for at in range(0, len(text), 1000))
    assert len(shown + taken.end()) > 99_000


@given(st.lists(st.sampled_from([*QUERIES, *HARMLESS]) | st.binary(max_size=5), max_size=8))
def test_no_query_comes_out(parts):
    data = b"".join(parts)
    taken = TerminalFilter()
    shown = b"".join(taken.feed(data[at : at + 3]) for at in range(0, len(data), 3)) + taken.end()
    assert len(shown) <= len(data)
    assert not re.search(rb"\x1b\[[=>?]?[0-9;]*[cn]|\x05|\x1bZ|\x1b\[[0-9;]*x", shown)


@given(st.text())
def test_printable(text):
    clean = printable(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", clean)
    assert printable(clean) == clean


def test_printable_keeps_what_people_read():
    assert printable("a\tb\nc ü 漢") == "a\tb\nc ü 漢"
    assert printable("\x1b[31mred\x1b[0m \x1b]0;t\x07x\x1b[6n") == "red x"
