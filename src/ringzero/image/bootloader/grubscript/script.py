"""The grammar of GRUB's scripts: commands, if, while, until, for, functions and menu entries.

Nothing is run here. Depth and size have bounds; what has no valid form raises FileSystemError.
"""

from __future__ import annotations

from ringzero.errors import FileSystemError
from ringzero.image.bootloader.grubscript.words import CLOSE, OPEN, SEPARATOR, Word, split
from ringzero.records import record

# Blocks in blocks. grub-mkconfig writes 4.
_MAX_DEPTH = 32


@record
class Command:
    """Words that are run; `block` stands in braces behind a menu entry's."""

    words: tuple[Word, ...]
    block: tuple[Statement, ...] | None = None


@record
class If:
    """`branches` are (condition, body); the condition of `else` is empty."""

    branches: tuple[tuple[tuple[Statement, ...], tuple[Statement, ...]], ...]


@record
class Loop:
    """While `condition` ends with the status `until` is not, the body runs."""

    condition: tuple[Statement, ...]
    until: bool
    body: tuple[Statement, ...]


@record
class For:
    variable: str
    words: tuple[Word, ...]
    body: tuple[Statement, ...]


@record
class Function:
    name: str
    body: tuple[Statement, ...]


Statement = Command | If | Loop | For | Function


def parse(text: str) -> tuple[Statement, ...]:
    """Return the statements of a script. Raises FileSystemError."""
    parser = _Parser(split(text))
    found = parser.block(())
    if not parser.over:
        raise FileSystemError("a GRUB configuration with a block that was never begun")
    return found


class _Parser:
    def __init__(self, words: list[Word]) -> None:
        self._words = words
        self._at = 0
        self._depth = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._words)

    def block(self, ends: tuple[str, ...]) -> tuple[Statement, ...]:
        """Return statements up to one of the words `ends`, which is next."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise FileSystemError(f"a GRUB configuration with blocks {_MAX_DEPTH} deep")
        found: list[Statement] = []
        while not self.over:
            word = self._words[self._at]
            if word == SEPARATOR:
                self._at += 1
                continue
            if _keyword(word) in ends:
                break
            if word == CLOSE:
                break
            found.append(self._statement())
        self._depth -= 1
        return tuple(found)

    def _statement(self) -> Statement:
        keyword = _keyword(self._words[self._at])
        if keyword == "if":
            return self._if()
        if keyword in ("while", "until"):
            self._at += 1
            condition = self.block(("do",))
            self._take("do")
            body = self.block(("done",))
            self._take("done")
            return Loop(condition, keyword == "until", body)
        if keyword == "for":
            return self._for()
        if keyword == "function":
            name = _keyword(self._words[self._at + 1]) if self._at + 1 < len(self._words) else ""
            self._at += 2
            return Function(name, self._braces())
        words: list[Word] = []
        while not self.over and (word := self._words[self._at]) != SEPARATOR:
            if word == OPEN and words:
                return Command(tuple(words), self._braces())
            self._at += 1
            words.append(word)
        return Command(tuple(words))

    def _if(self) -> If:
        branches = []
        keyword = "if"
        while keyword in ("if", "elif"):
            self._at += 1
            condition = self.block(("then",))
            self._take("then")
            body = self.block(("elif", "else", "fi"))
            branches.append((condition, body))
            keyword = _keyword(self._words[self._at]) if not self.over else ""
        if keyword == "else":
            self._at += 1
            branches.append(((), self.block(("fi",))))
        self._take("fi")
        return If(tuple(branches))

    def _for(self) -> For:
        at = self._at + 1
        name = _keyword(self._words[at]) if at < len(self._words) else ""
        self._at = at + 1
        self._take("in")
        words = []
        while not self.over and self._words[self._at] != SEPARATOR:
            words.append(self._words[self._at])
            self._at += 1
        while not self.over and self._words[self._at] == SEPARATOR:
            self._at += 1
        self._take("do")
        body = self.block(("done",))
        self._take("done")
        return For(name, tuple(words), body)

    def _braces(self) -> tuple[Statement, ...]:
        while not self.over and self._words[self._at] == SEPARATOR:
            self._at += 1
        if self.over or self._words[self._at] != OPEN:
            raise FileSystemError("a GRUB configuration with a '{' missing")
        self._at += 1
        body = self.block(())
        if self.over:
            raise FileSystemError("a GRUB configuration with a '}' missing")
        self._at += 1
        return body

    def _take(self, keyword: str) -> None:
        if self.over or _keyword(self._words[self._at]) != keyword:
            raise FileSystemError(f"a GRUB configuration with {keyword!r} missing")
        self._at += 1


def _keyword(word: Word) -> str:
    """Return a word that may be a keyword: one piece, not quoted, no variable."""
    if len(word) == 1 and not word[0].quoted and not word[0].variable:
        return word[0].text
    return ""
