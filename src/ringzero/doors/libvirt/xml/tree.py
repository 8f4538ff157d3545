"""XML as libvirt's clients send it: parsed within bounds, and written.

A document of a stranger is small, flat and plain. One with a document type is refused, and with it
every entity; so are those that are longer, deeper or have more elements than LIMITS. The parser is
expat, which the standard library has: defusedxml would refuse entities too, but bounds neither
depth nor number, and xml.etree, on which it rests, loses the prefixes of names, by which clients
find their own metadata again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.parsers import expat
from xml.sax.saxutils import escape

from ringzero.errors import InvalidValueError

# The protocol's own limit for a text.
MAX_BYTES = 4 << 20
# libvirt's documents have some ten levels, metadata a few more; a domain with 500 disks has 8,000
# elements.
MAX_DEPTH = 64
MAX_ELEMENTS = 20_000
_HINT = "`virt-xml-validate FILE` tells what libvirt's schemas make of it"
# XML 1.0, section 2.2: no other characters are in a document, whatever way they are written.
_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_QUOTES = {'"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}


class Element:
    """An element: its name with its prefix, attributes, and what is in it, in order."""

    __slots__ = ("attributes", "content", "name")

    def __init__(self, name: str, attributes: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.attributes = dict(attributes or {})
        self.content: list[Element | str] = []

    def __iter__(self) -> Iterator[Element]:
        """Yield the elements in it."""
        return (item for item in self.content if isinstance(item, Element))

    @property
    def text(self) -> str:
        """The text in it, that of elements in it not counted."""
        return "".join(item for item in self.content if isinstance(item, str))

    def find(self, name: str) -> Element | None:
        """Return the first element in it of this name."""
        return next((item for item in self if item.name == name), None)

    def all(self, name: str) -> list[Element]:
        """Return the elements in it of this name."""
        return [item for item in self if item.name == name]

    def add(self, name: str, text: str | None = None, /, **attributes: str | None) -> Element:
        """Append an element with a text and those attributes that are not None; return it."""
        item = Element(name, {key: v for key, v in attributes.items() if v is not None})
        if text:
            item.content.append(text)
        self.content.append(item)
        return item

    def make(self, name: str) -> Element:
        """Return the first element in it of this name, appended where there is none."""
        found = self.find(name)
        return self.add(name) if found is None else found

    @property
    def empty(self) -> bool:
        """Whether nothing is in it but space."""
        return not self.attributes and all(
            isinstance(item, str) and not item.strip() for item in self.content
        )

    def copy(self) -> Element:
        """Return the same, with elements of its own."""
        item = Element(self.name, self.attributes)
        item.content = [each if isinstance(each, str) else each.copy() for each in self.content]
        return item


class _Builder:
    """Makes elements of what expat finds."""

    def __init__(self) -> None:
        self.open: list[Element] = []
        self.root: Element | None = None
        self.count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.count += 1
        if self.count > MAX_ELEMENTS or len(self.open) >= MAX_DEPTH:
            raise InvalidValueError(
                f"XML with more than {MAX_ELEMENTS} elements, or deeper than {MAX_DEPTH}"
            )
        item = Element(name, attributes)
        if self.open:
            self.open[-1].content.append(item)
        else:
            self.root = item
        self.open.append(item)

    def end(self, name: str) -> None:
        self.open.pop()

    def text(self, text: str) -> None:
        self.open[-1].content.append(text)

    def refuse(self, *_: object) -> None:
        raise InvalidValueError("XML with a document type or entities", hint="leave it out")


def parse(document: str) -> Element:
    """Return the root of a document. Raises InvalidValueError for what is none, or no plain one."""
    try:
        data = document.encode()
    except UnicodeEncodeError as fault:
        raise InvalidValueError("XML that is not in UTF-8", hint=_HINT) from fault
    if len(data) > MAX_BYTES:
        raise InvalidValueError(f"XML of {len(data)} bytes; at most {MAX_BYTES}")
    parser, builder = expat.ParserCreate("UTF-8"), _Builder()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = builder.refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as fault:
        raise InvalidValueError(f"no XML: {fault}", hint=_HINT) from fault
    assert builder.root is not None, "expat takes no document without an element"
    return builder.root


def render(root: Element) -> str:
    """Return a document: two spaces for each level, as libvirt writes it."""
    pieces: list[str] = []
    _render(root, "", pieces)
    return _NO_CHARACTER.sub("\N{REPLACEMENT CHARACTER}", "".join(pieces))


def _render(item: Element, indent: str, pieces: list[str]) -> None:
    attributes = "".join(
        f' {key}="{escape(value, _QUOTES)}"' for key, value in item.attributes.items()
    )
    text = item.text
    if not item.content or (not text.strip() and not any(item)):
        pieces.append(f"{indent}<{item.name}{attributes}/>\n")
        return
    pieces.append(f"{indent}<{item.name}{attributes}>")
    if text.strip():
        _render_mixed(item, pieces)
        pieces.append(f"</{item.name}>\n")
        return
    pieces.append("\n")
    for child in item:
        _render(child, f"{indent}  ", pieces)
    pieces.append(f"{indent}</{item.name}>\n")


def _render_mixed(item: Element, pieces: list[str]) -> None:
    """Append what is in an element whose text means something: nothing may be added to it."""
    for child in item.content:
        if isinstance(child, str):
            pieces.append(escape(child, {"\r": "&#13;"}))
        else:
            inner: list[str] = []
            _render(child, "", inner)
            pieces.append("".join(inner).rstrip("\n"))
