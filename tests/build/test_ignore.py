"""Ignore files, as Docker's own documentation and Go's filepath.Match have them."""

import pytest

from ringzero.build.ignore import Ignore


@pytest.mark.parametrize(
    ("lines", "path", "out"),
    [
        (["*.o"], "a.o", True),
        (["*.o"], "sub/a.o", False),
        (["**/*.o"], "sub/deep/a.o", True),
        (["**/*.o"], "a.o", True),
        (["sub"], "sub/deep/a", True),
        (["sub/*"], "sub", False),
        (["/sub/"], "sub/a", True),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["\\*"], "*", True),
        (["\\*"], "a", False),
        (["*", "!keep"], "keep", False),
        (["*", "!keep"], "other", True),
        (["!keep", "*"], "keep", True),
        (["# *"], "# *", False),
        (["", "  "], "a", False),
        (["docs/**"], "docs/a/b", True),
        (["./a"], "a", True),
        (["a[", "b"], "b", True),
    ],
)
def test_what_is_left_out(lines, path, out):
    assert Ignore(lines).leaves_out(path) is out
