"""What a document looks like, written once: from a shape come its reader and its writer.

    DISK = Shape("disk", DiskXml, {
        "device": Value("@device"),
        "format": Value("driver/@type"),
        "read_only": Flag("readonly"),
        "boot_order": Value("boot/@order", NUMBER),
    })

A shape has a place in the document for each field of a record: an attribute (`@name`) or an
element, under elements. It reads what stands there, and writes the fields in their order. Whatever
else is in the document is kept in the record's field `extra`, is told by `unknown`, and is written
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ringzero.doors.libvirt.xml.tree import Element, parse, render
from ringzero.errors import InvalidValueError
from ringzero.records import optional_fields

# How much of a wrong text a message quotes.
_QUOTED = 80


class Extra(NamedTuple):
    """What nobody here understands: an attribute or text by its path, or an element as XML."""

    path: str
    text: str


class Shaped(Protocol):
    """A record that keeps what is not understood."""

    @property
    def extra(self) -> tuple[Extra, ...]:
        """What is in the document besides."""
        ...


R = TypeVar("R", bound=Shaped)


class Form(NamedTuple):
    """How a value is written as text; `read` may raise ValueError, and gives None for nothing."""

    noun: str
    read: Callable[[str], Any]
    write: Callable[[Any], str]


def _number(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    # The widest numbers that libvirt has; longer ones are no numbers to anybody.
    if len(text) > 20:
        raise ValueError(text)
    return int(text, 16 if text[:2].lower() == "0x" else 10)


def _choice(yes: str, no: str) -> Form:
    def read(text: str) -> bool | None:
        text = text.strip()
        if text not in (yes, no, ""):
            raise ValueError(text)
        return text == yes if text else None

    return Form(f"{yes} or {no}", read, lambda value: yes if value else no)


TEXT = Form("a text", lambda text: text.strip() or None, str)
# With the spaces around it, for people.
PROSE = Form("a text", lambda text: text if text.strip() else None, str)
NUMBER = Form("a whole number", _number, str)
YES_NO, ON_OFF = _choice("yes", "no"), _choice("on", "off")

# What libvirt calls sizes (virScaleInteger): "KB" is 1000, "K" and "KiB" 1024.
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS |= {
        _letter: 1024**_power,
        f"{_letter}ib": 1024**_power,
        f"{_letter}b": 1000**_power,
    }
_LARGEST_SIZE = (1 << 63) - 1


class Field:
    """A field of a record, and where it is in the document."""

    def __init__(self, path: str) -> None:
        self.path = path
        *steps, self.name = path.split("/")
        self.steps = steps

    @property
    def elements(self) -> Iterator[str]:
        """The paths of the elements that it looks into."""
        steps = self.steps if self.name.startswith("@") else [*self.steps, self.name]
        return ("/".join(steps[: n + 1]) for n in range(len(steps)))

    def take(self, root: Element, where: str) -> Any:
        """Return the value, out of the document; None where it has none."""
        raise NotImplementedError

    def put(self, root: Element, value: Any) -> None:
        """Write a value that is not None."""
        raise NotImplementedError

    def unknown(self, value: Any) -> Iterator[str]:
        """Yield the paths of what is kept and not understood in a value."""
        return iter(())

    def parent(self, root: Element) -> Element | None:
        """Return the element in which it is, if there is one."""
        found: Element | None = root
        for step in self.steps:
            found = None if found is None else found.find(step)
        return found

    def made_parent(self, root: Element) -> Element:
        """Return the element in which it is, made where there is none."""
        for step in self.steps:
            root = root.make(step)
        return root

    def wrong(self, where: str, text: str, noun: str) -> InvalidValueError:
        """Return the error for a text that is no such value."""
        text = text.strip()
        text = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
        return InvalidValueError(f"<{where}>: {self.path}: {text!r} is not {noun}")


class Value(Field):
    """A text, number or choice, in an attribute or an element."""

    def __init__(self, path: str, form: Form = TEXT) -> None:
        super().__init__(path)
        self.form = form

    def take(self, root: Element, where: str) -> Any:
        parent = self.parent(root)
        text = None if parent is None else _take_text(parent, self.name)
        if text is None:
            return None
        try:
            return self.form.read(text)
        except ValueError:
            raise self.wrong(where, text, self.form.noun) from None

    def put(self, root: Element, value: Any) -> None:
        text = self.form.write(value)
        if text:
            _put_text(self.made_parent(root), self.name, text)


class Size(Field):
    """A number of bytes in an element that may say its unit; without one it is in `unit`."""

    def __init__(self, path: str, unit: str, written: str) -> None:
        super().__init__(path)
        self.unit, self.written = unit, written

    def take(self, root: Element, where: str) -> int | None:
        parent = self.parent(root)
        item = None if parent is None else parent.find(self.name)
        if item is None:
            return None
        text, item.content = item.text, []
        unit = item.attributes.pop("unit", self.unit)
        try:
            count = _number(text)
        except ValueError:
            count = -1
        if count is None:
            return None
        factor = _UNITS.get(unit.strip().lower(), 0)
        if count < 0 or not factor or count * factor > _LARGEST_SIZE:
            raise self.wrong(where, f"{text.strip()} {unit}", "a size")
        return count * factor

    def put(self, root: Element, value: Any) -> None:
        factor = _UNITS[self.written.lower()]
        unit = self.written if value % factor == 0 else "bytes"
        text = str(value // factor if unit == self.written else value)
        self.made_parent(root).add(self.name, text, unit=unit)


class Flag(Field):
    """An element that is there or not."""

    def take(self, root: Element, where: str) -> bool:
        parent = self.parent(root)
        return parent is not None and parent.find(self.name) is not None

    def put(self, root: Element, value: Any) -> None:
        if value:
            self.made_parent(root).make(self.name)


class Texts(Field):
    """The texts, or one attribute, of all elements of a name: `boot/@dev`."""

    def __init__(self, path: str, attribute: str | None = None) -> None:
        super().__init__(path)
        self.attribute = attribute

    def take(self, root: Element, where: str) -> tuple[str, ...]:
        parent = self.parent(root)
        if parent is None:
            return ()
        found, rest = list[str](), list[Element | str]()
        for item in parent.content:
            if isinstance(item, str) or item.name != self.name:
                rest.append(item)
                continue
            text = _take_text(item, "" if self.attribute is None else f"@{self.attribute}")
            if text is not None and text.strip():
                found.append(text.strip())
            if not item.empty:
                rest.append(item)
        parent.content = rest
        return tuple(found)

    def put(self, root: Element, value: Any) -> None:
        parent = self.made_parent(root) if value else root
        for text in value:
            if self.attribute is None:
                parent.add(self.name, text)
            else:
                parent.add(self.name, **{self.attribute: text})


class Verbatim(Field):
    """The elements in an element, as XML texts; they are nobody's business here."""

    def take(self, root: Element, where: str) -> tuple[str, ...]:
        parent = self.parent(root)
        item = None if parent is None else parent.find(self.name)
        if item is None:
            return ()
        found = tuple(render(child) for child in item)
        item.content = []
        return found

    def put(self, root: Element, value: Any) -> None:
        if value:
            self.made_parent(root).make(self.name).content += [parse(text) for text in value]


class One(Field):
    """A record in an element."""

    def __init__(self, path: str, shape: Shape[Any]) -> None:
        super().__init__(path)
        self.shape = shape

    def take(self, root: Element, where: str) -> Any:
        found = self._records(root, 1)
        return found[0] if found else None

    def put(self, root: Element, value: Any) -> None:
        self.made_parent(root).content.append(self.shape.write(value))

    def unknown(self, value: Any) -> Iterator[str]:
        return (f"{self.path}/{path}" for path in self.shape.unknown(value))

    def _records(self, root: Element, most: int | None) -> list[Any]:
        parent = self.parent(root)
        if parent is None:
            return []
        found = parent.all(self.name)[:most]
        taken = set(map(id, found))
        parent.content = [item for item in parent.content if id(item) not in taken]
        return [self.shape.read(item) for item in found]


class Many(One):
    """Records in all elements of a name."""

    def take(self, root: Element, where: str) -> tuple[Any, ...]:
        return tuple(self._records(root, None))

    def put(self, root: Element, value: Any) -> None:
        for item in value:
            super().put(root, item)

    def unknown(self, value: Any) -> Iterator[str]:
        return (path for item in value for path in super(Many, self).unknown(item))


class Shape(Generic[R]):
    """An element of the name `name`, and the record that it is; see the module."""

    def __init__(self, name: str, kind: type[R], fields: Mapping[str, Field]) -> None:
        self.name, self.kind, self.fields = name, kind, dict(fields)
        # Elements that fields look into; what is left in them is told by itself.
        self._known = {
            path
            for field in self.fields.values()
            if not isinstance(field, One)
            for path in field.elements
        } | {
            "/".join(field.steps[: n + 1])
            for field in self.fields.values()
            for n in range(len(field.steps))
        }

    def parse(self, document: str) -> R:
        """Return the record that a document is; raises InvalidValueError."""
        root = parse(document)
        if root.name != self.name:
            raise InvalidValueError(f"<{root.name[:_QUOTED]}> in the place of <{self.name}>")
        return self.read(root)

    def render(self, item: R) -> str:
        """Return the document that a record is."""
        return render(self.write(item))

    def read(self, element: Element) -> R:
        """Return the record that an element is; raises InvalidValueError."""
        rest = element.copy()
        values = {}
        for name, field in self.fields.items():
            value = field.take(rest, self.name)
            if value is not None:
                values[name] = value
        missing = set(self.fields) - values.keys() - optional_fields(self.kind)
        if missing:
            places = ", ".join(sorted(self.fields[name].path for name in missing))
            raise InvalidValueError(f"<{self.name}> without {places}")
        # In one order, whatever theirs was: it means nothing.
        extra = sorted(self._left(rest, ""), key=lambda item: item.path)
        make: Any = self.kind
        found: R = make(**values, extra=tuple(extra))
        return found

    def write(self, item: R) -> Element:
        """Return the element that a record is."""
        root = Element(self.name)
        for name, field in self.fields.items():
            value = getattr(item, name)
            if value is not None:
                field.put(root, value)
        for extra in item.extra:
            *steps, last = extra.path.split("/")
            place = root
            for step in steps:
                place = place.make(step)
            if last.startswith("@"):
                place.attributes.setdefault(last[1:], extra.text)
            elif last == "text()":
                place.content.append(extra.text)
            else:
                place.content.append(parse(extra.text))
        return root

    def unknown(self, item: R) -> Iterator[str]:
        """Yield the paths of all that was kept and is not understood, each once."""
        seen = set()
        for extra in item.extra:
            if not extra.path.partition("@")[2].startswith("xmlns") and extra.path not in seen:
                seen.add(extra.path)
                yield extra.path
        for name, field in self.fields.items():
            value = getattr(item, name)
            for path in () if value is None else field.unknown(value):
                if path not in seen:
                    seen.add(path)
                    yield path

    def _left(self, item: Element, path: str) -> Iterator[Extra]:
        """Yield what the fields have not taken."""
        under = f"{path}/" if path else ""
        for name, value in item.attributes.items():
            yield Extra(f"{under}@{name}", value)
        if item.text.strip():
            yield Extra(f"{under}text()", item.text)
        first = set()
        for child in item:
            place = f"{under}{child.name}"
            if place not in self._known or (place in first and not child.empty):
                yield Extra(place, render(child))
            elif place not in first:
                first.add(place)
                yield from self._left(child, place)


def _take_text(parent: Element, name: str) -> str | None:
    """Return an attribute, the text of an element, or the own one, out of the document."""
    if name.startswith("@"):
        return parent.attributes.pop(name[1:], None)
    item = parent.find(name) if name else parent
    if item is None:
        return None
    text = item.text
    item.content = list(item)
    return text


def _put_text(parent: Element, name: str, text: str) -> None:
    if name.startswith("@"):
        parent.attributes[name[1:]] = text
    elif name:
        parent.make(name).content.append(text)
    else:
        parent.content.append(text)
