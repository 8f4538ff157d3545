"""The words of GRUB's scripts (GRUB manual, "Writing full configuration files directly").

Quotes and escapes are kept with each piece, because variables are replaced when a command runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ringzero.records import record

# One word may be a file's path or a whole command line; no sane one is longer, in characters.
MAX_WORD = 64 * 1024
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z0-9_?@*#]+)\}|([A-Za-z_][A-Za-z0-9_]*|[0-9?@*#]))")
_PLAIN = re.compile(r"[^\s;{}'\"\\$#&|<>]+|#+")
_IN_QUOTES = re.compile(r'[^"\\$]+')


@record
class Piece:
    """Text or, with `variable`, the name of one; `quoted` pieces are never split."""

    text: str
    variable: bool = False
    quoted: bool = False


Word = tuple[Piece, ...]

# What ends a command. Braces are words of their own where they stand alone.
SEPARATOR = (Piece(";"),)
OPEN, CLOSE = (Piece("{"),), (Piece("}"),)


def split(text: str) -> list[Word]:
    """Return the words of a script, with SEPARATOR for line ends and semicolons."""
    words: list[Word] = []
    pieces: list[Piece] = []
    at, inside = 0, False

    def end() -> None:
        nonlocal inside
        if inside:
            words.append(tuple(pieces))
            pieces.clear()
            inside = False

    while at < len(text):
        c = text[at]
        if c in " \t\r":
            end()
            at += 1
        elif c in "\n;&|<>":
            end()
            words.append(SEPARATOR)
            at += 1
        elif c == "#" and not inside:
            at = _line_end(text, at)
        elif c in "{}" and not inside:
            words.append(OPEN if c == "{" else CLOSE)
            at += 1
        elif c == "\\":
            if text[at + 1 : at + 2] != "\n":
                pieces.append(Piece(text[at + 1 : at + 2], quoted=True))
                inside = True
            at += 2
        elif c == "'":
            close = text.find("'", at + 1)
            close = len(text) if close < 0 else close
            pieces.append(Piece(text[at + 1 : close], quoted=True))
            inside, at = True, close + 1
        elif c == '"':
            at = _double_quoted(text, at + 1, pieces)
            inside = True
        elif c == "$":
            at = _dollar(text, at, pieces, quoted=False)
            inside = True
        else:
            found = _PLAIN.match(text, at)
            piece = found.group() if found else c
            pieces.append(Piece(piece))
            inside, at = True, at + len(piece)
    end()
    words.append(SEPARATOR)
    return words


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _double_quoted(text: str, at: int, pieces: list[Piece]) -> int:
    pieces.append(Piece("", quoted=True))
    while at < len(text) and text[at] != '"':
        if text[at] == "\\":
            follows = text[at + 1 : at + 2]
            # Other characters keep their backslash, as in a shell.
            kept = follows if follows in ('"', "\\", "$") else "\\" + follows
            pieces.append(Piece("" if follows == "\n" else kept, quoted=True))
            at += 2
        elif text[at] == "$":
            at = _dollar(text, at, pieces, quoted=True)
        else:
            found = _IN_QUOTES.match(text, at)
            assert found is not None
            pieces.append(Piece(found.group(), quoted=True))
            at = found.end()
    return at + 1


def _dollar(text: str, at: int, pieces: list[Piece], *, quoted: bool) -> int:
    found = _VARIABLE.match(text, at)
    if found is None:
        pieces.append(Piece("$", quoted=quoted))
        return at + 1
    pieces.append(Piece(found[1] or found[2], variable=True, quoted=quoted))
    return found.end()


def expand(word: Word, value: Callable[[str], str]) -> list[str]:
    """Return the arguments that a word becomes: none or several where variables are not quoted."""
    arguments: list[str] = []
    current: str | None = None
    for piece in word:
        text = value(piece.text) if piece.variable else piece.text
        if not piece.variable or piece.quoted:
            current = (current or "") + text
            continue
        parts = text.split()
        if not parts:
            continue
        first, *others = parts
        current = (current or "") + first
        for other in others:
            arguments.append(current)
            current = other
    if current is not None:
        arguments.append(current)
    return [argument[:MAX_WORD] for argument in arguments]
