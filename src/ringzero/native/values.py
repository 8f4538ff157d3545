"""Symbolic values of the native language and the builder they are made with.

A `Value` stands for something known only when the generated code runs. Its
operators emit code through the builder that is active. It refuses `bool()`,
so that a data-dependent `if` in plain Python fails loudly; in a `@staged` or
`@native` function an `if` on a Value becomes a branch.
"""

from __future__ import annotations

from typing import Any

from ringzero.native.generation import Symbol, as_value, builder, convert
from ringzero.native.types import Bool, Int, StructType


class Value(Symbol):
    """A value of type `kind`, called `ref` in the generated code."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise TypeError(
            "a native value has no truth at generation time; use `if` in a @staged function"
        )

    __hash__ = None  # type: ignore[assignment]

    def _other(self, other: Any) -> Value:
        if isinstance(other, Value):
            if other.kind != self.kind:
                raise TypeError(f"mixed types: {self.kind} and {other.kind}; convert one")
            return other
        constant: Value = as_value(other, self.kind)
        return constant

    def _binary(self, operator: str, other: Any) -> Value:
        result: Value = builder().binary(operator, self, self._other(other))
        return result

    def _reflected(self, operator: str, other: Any) -> Value:
        result: Value = builder().binary(operator, self._other(other), self)
        return result

    def _shift(self, operator: str, count: Any) -> Value:
        result: Value = builder().binary(operator, self, convert(self.kind, count))
        return result

    def _compare(self, operator: str, other: Any) -> Value:
        result: Value = builder().compare(operator, self, self._other(other))
        return result

    def __add__(self, other: Any) -> Value:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Value:
        return self._reflected("add", other)

    def __sub__(self, other: Any) -> Value:
        return self._binary("sub", other)

    def __rsub__(self, other: Any) -> Value:
        return self._reflected("sub", other)

    def __mul__(self, other: Any) -> Value:
        return self._binary("mul", other)

    def __rmul__(self, other: Any) -> Value:
        return self._reflected("mul", other)

    def __floordiv__(self, other: Any) -> Value:
        return self._binary("div", other)

    def __mod__(self, other: Any) -> Value:
        return self._binary("rem", other)

    def __and__(self, other: Any) -> Value:
        return self._binary("and", other)

    def __rand__(self, other: Any) -> Value:
        return self._reflected("and", other)

    def __or__(self, other: Any) -> Value:
        return self._binary("or", other)

    def __ror__(self, other: Any) -> Value:
        return self._reflected("or", other)

    def __xor__(self, other: Any) -> Value:
        return self._binary("xor", other)

    def __rxor__(self, other: Any) -> Value:
        return self._reflected("xor", other)

    def __lshift__(self, count: Any) -> Value:
        return self._shift("shl", count)

    def __rshift__(self, count: Any) -> Value:
        return self._shift("shr", count)

    def __rlshift__(self, other: Any) -> Value:
        return self._reflected("shl", other)

    def __invert__(self) -> Value:
        if isinstance(self.kind, Bool):
            return self ^ True
        mask: int = self.kind.mask
        return self ^ mask

    def __neg__(self) -> Value:
        return self._reflected("sub", 0)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return self._compare("eq", other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return self._compare("ne", other)

    def __lt__(self, other: Any) -> Value:
        return self._compare("lt", other)

    def __le__(self, other: Any) -> Value:
        return self._compare("le", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare("gt", other)

    def __ge__(self, other: Any) -> Value:
        return self._compare("ge", other)

    def __getattr__(self, name: str) -> Any:
        kind = self.kind
        if isinstance(kind, StructType) and name in kind.fields:
            member = kind.fields[name]
            if member.count is not None:
                return ArrayRef(self, member)
            if isinstance(member.kind, StructType):
                address = builder().offset(self, member.offset)
                return Value(member.kind, address.ref)
            return builder().load(member.kind, self, member.offset)
        raise AttributeError(f"{kind} has no member {name!r}")


class ArrayRef:
    """A struct's array member before it is indexed."""

    __slots__ = ("base", "member")

    def __init__(self, base: Value, member: Any) -> None:
        self.base = base
        self.member = member

    def _offset(self, index: Any) -> int | Value:
        size = self.member.kind.size
        if isinstance(index, int):
            if not 0 <= index < self.member.count:
                raise IndexError(f"{self.member.name}[{index}]")
            return int(self.member.offset + index * size)
        offset: Value = convert(Int(64), index) * size + self.member.offset
        return offset

    def __getitem__(self, index: Any) -> Any:
        kind = self.member.kind
        if isinstance(kind, StructType):
            return Value(kind, builder().offset(self.base, self._offset(index)).ref)
        return builder().load(kind, self.base, self._offset(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        kind = self.member.kind
        builder().store(kind, self.base, self._offset(index), as_value(value, kind))

    def address(self, index: Any = 0) -> Value:
        """Return the host address (u64) of element `index`."""
        where: Value = convert(Int(64), builder().offset(self.base, self._offset(index)))
        return where


def set_field(base: Value, name: str, value: Any) -> None:
    """Store `value` in member `name` of the struct that `base` points to."""
    member = base.kind.fields[name]
    if member.count is not None:
        raise TypeError(f"{name} is an array: give an index")
    builder().store(member.kind, base, member.offset, as_value(value, member.kind))
