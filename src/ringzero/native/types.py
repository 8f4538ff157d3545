"""Types of the native language: integers of a width, booleans, vectors, structs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from ringzero.native.generation import convert
from ringzero.records import record


@record
class Int:
    """An integer of `bits` bits; arithmetic wraps.

    Calling it converts: a compile-time int becomes a typed constant, a value is
    truncated, or extended by the sign of the type it has.
    """

    bits: int
    signed: bool = False

    def __call__(self, value: Any) -> Any:
        return convert(self, value)

    def __repr__(self) -> str:
        return f"{'i' if self.signed else 'u'}{self.bits}"

    @property
    def mask(self) -> int:
        return (1 << self.bits) - 1

    @property
    def size(self) -> int:
        """Size in bytes as it lies in memory."""
        return (self.bits + 7) // 8


@record
class Bool:
    """A truth value; what comparisons give."""

    size = 1

    def __call__(self, value: Any) -> Any:
        return convert(self, value)

    def __repr__(self) -> str:
        return "boolean"


@record
class Vec128:
    """128 bits without an interpretation, as held by a vector register."""

    size = 16

    def __call__(self, value: Any) -> Any:
        return convert(self, value)

    def __repr__(self) -> str:
        return "v128"


if TYPE_CHECKING:
    # To a type checker, values of the native language are plain ints.
    u8: TypeAlias = int
    u16: TypeAlias = int
    u32: TypeAlias = int
    u64: TypeAlias = int
    u128: TypeAlias = int
    i8: TypeAlias = int
    i16: TypeAlias = int
    i32: TypeAlias = int
    i64: TypeAlias = int
    i128: TypeAlias = int
    boolean: TypeAlias = bool
    v128: TypeAlias = Any
else:
    u8, u16, u32, u64, u128 = (Int(n) for n in (8, 16, 32, 64, 128))
    i8, i16, i32, i64, i128 = (Int(n, signed=True) for n in (8, 16, 32, 64, 128))
    boolean = Bool()
    v128 = Vec128()


def unsigned(bits: int) -> Any:
    """Return the unsigned integer type of `bits` bits."""
    return Int(bits)


def signed(bits: int) -> Any:
    """Return the signed integer type of `bits` bits."""
    return Int(bits, signed=True)


class Field:
    """A member of a Struct: `count` is None for one value, else the length of an array."""

    def __init__(self, kind: Any, count: int | None = None) -> None:
        self.kind = kind
        self.count = count
        self.name = ""
        self.offset = 0

    @property
    def size(self) -> int:
        """Size in bytes, all elements together."""
        return int(self.kind.size) * (1 if self.count is None else self.count)

    @property
    def alignment(self) -> int:
        return min(int(self.kind.size), 16) if not isinstance(self.kind, StructType) else 16


def field(kind: Any, count: int | None = None) -> Any:
    """Declare a member of a Struct (typed Any, because reading it gives a native value)."""
    return Field(kind, count)


class StructType(type):
    """Lays members out in order, each at its natural alignment, as C does."""

    fields: dict[str, Field]
    size: int

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> StructType:
        members = {key: value for key, value in space.items() if isinstance(value, Field)}
        for key in members:
            if key in ("kind", "ref"):
                raise TypeError(f"{name}.{key}: a native value has attributes of that name itself")
            del space[key]
        cls = super().__new__(mcs, name, bases, space)
        offset = 0
        for key, member in members.items():
            member.name = key
            offset = -(-offset // member.alignment) * member.alignment
            member.offset = offset
            offset += member.size
        cls.fields = members
        cls.size = -(-offset // 16) * 16
        return cls

    def __iter__(cls) -> Iterator[Field]:
        return iter(cls.fields.values())

    def offset_of(cls, name: str, index: int = 0) -> int:
        """Return the byte offset of member `name` (of its element `index`)."""
        member = cls.fields[name]
        return member.offset + index * int(member.kind.size)


class Struct(metaclass=StructType):
    """Base of native structs; as an annotation it means "pointer to this struct".

    Members are declared with `name = field(u64)` or `name = field(u64, 16)`.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
