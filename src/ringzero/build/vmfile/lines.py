"""From physical lines to logical ones: directives, comments, continued lines, here-documents.

Dockerfile reference, "Format", "Parser directives", "Escape character", "Here-Documents".
"""

from __future__ import annotations

import re

from ringzero.build.vmfile.faults import Fault
from ringzero.records import field, mutable_record, record

BACKSLASH, BACKTICK = "\\", "`"
_DIRECTIVE = re.compile(r"\s*#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_COMMENT = re.compile(r"\s*#")
# Of three `<` the word is a here-string, which is the shell's alone.
_DOCUMENT = re.compile(r"(?<!<)<<(-?)(?:\"([\w.]+)\"|'([\w.]+)'|([\w.]+))")
# The instructions that take here-documents.
_WITH_DOCUMENTS = ("RUN", "COPY", "ADD")


@record
class Document:
    """A here-document: what is called `name`; `expands` unless its name was quoted."""

    name: str
    content: str
    expands: bool


@record
class Line:
    """A logical line: its text without comments and line ends, and where each piece stood.

    `starts` are (index in the text, line, column) of the pieces, the latter two from 1.
    """

    text: str
    starts: tuple[tuple[int, int, int], ...]
    documents: tuple[Document, ...] = ()

    def place(self, index: int) -> tuple[int, int]:
        """Return the (line, column) of the character at `index`."""
        start, line, column = next(s for s in reversed(self.starts) if s[0] <= index)
        return line, column + index - start


@mutable_record
class Lines:
    """All logical lines of a file, its directives, and what is wrong already."""

    lines: list[Line] = field(default_factory=list)
    directives: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @property
    def escape(self) -> str:
        """The character that continues lines and quotes others."""
        return self.directives.get("escape", BACKSLASH)


def read_lines(physical: list[str]) -> Lines:
    """Return the logical lines of a file's `physical` ones, which have no line ends."""
    found = Lines()
    at = _read_directives(physical, found)
    escape = found.escape
    continued = re.compile(re.escape(escape) + r"[ \t]*$")
    while at < len(physical):
        if not physical[at].strip() or _COMMENT.match(physical[at]):
            at += 1
            continue
        text, starts = "", []
        while at < len(physical):
            raw = physical[at]
            at += 1
            if text and (_COMMENT.match(raw) or not raw.strip()):
                continue
            skipped = 0 if text else len(raw) - len(raw.lstrip())
            ending = continued.search(raw)
            piece = raw[skipped : ending.start() if ending else None]
            starts.append((len(text), at, skipped + 1))
            text += piece
            if not ending:
                break
        names = _documents_of(text, escape)
        documents: list[Document] = []
        for index, name, strips, expands in names:
            first = at
            content: list[str] = []
            while at < len(physical):
                line = physical[at].lstrip("\t") if strips else physical[at]
                at += 1
                if line == name:
                    break
                content.append(line + "\n")
            else:
                where = Line(text, tuple(starts)).place(index)
                found.faults.append(
                    Fault(
                        *where, 2, f"the here-document {name!r} never ends; a line {name!r} ends it"
                    )
                )
                at = len(physical) if first < len(physical) else first
            documents.append(Document(name, "".join(content), expands))
        if text.strip():
            found.lines.append(Line(text.rstrip(), tuple(starts), tuple(documents)))
    return found


def _read_directives(physical: list[str], found: Lines) -> int:
    """Read the directives, which stand before all else; return how many lines they are."""
    for at, raw in enumerate(physical):
        match = _DIRECTIVE.fullmatch(raw)
        name = match[1].lower() if match else ""
        if not match or name not in ("syntax", "escape", "check"):
            return at
        column = match.start(2) + 1
        if name in found.directives:
            found.faults.append(
                Fault(at + 1, match.start(1) + 1, len(name), f"a second directive {name!r}")
            )
        elif name == "escape" and match[2] not in (BACKSLASH, BACKTICK):
            found.faults.append(
                Fault(at + 1, column, max(1, len(match[2])), "escape is a backslash or a backtick")
            )
        else:
            found.directives[name] = match[2]
    return len(physical)


def _documents_of(text: str, escape: str) -> list[tuple[int, str, bool, bool]]:
    """Return (index, name, whether tabs go, whether it expands) of a line's here-documents."""
    keyword = text.split(maxsplit=1)[0].upper() if text.strip() else ""
    if keyword == "ONBUILD":
        keyword = [*text.split(maxsplit=2), "", ""][1].upper()
    if keyword not in _WITH_DOCUMENTS or "<<" not in text:
        return []
    found: list[tuple[int, str, bool, bool]] = []
    quote, at = "", 0
    while at < len(text):
        character = text[at]
        if quote:
            if character == escape and quote == '"':
                at += 1
            elif character == quote:
                quote = ""
        elif character == escape:
            at += 1
        elif character in "\"'":
            quote = character
        elif character == "<" and (match := _DOCUMENT.match(text, at)):
            name = match[2] or match[3] or match[4]
            found.append((at, name, bool(match[1]), match[4] is not None))
            at = match.end() - 1
        at += 1
    return found
