"""Native structs seen from Python, through ctypes, by the addresses they lie at.

A struct's type in ctypes is made once; a view of one is then a few hundred nanoseconds, and an
access to a member as well. ctypes itself stores and reads the integers: `memmove` would give
the interpreter's lock away at each store, and another thread might take it.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from ringzero.native.types import Bool, Field, Int, StructType, Vec128

_INTEGERS: dict[tuple[int, bool], Any] = {
    (ctypes.sizeof(kind), signed): kind
    for signed, kinds in (
        (False, (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)),
        (True, (ctypes.c_int8, ctypes.c_int16, ctypes.c_int32, ctypes.c_int64)),
    )
    for kind in kinds
}


class StructView(ctypes.Structure):
    """A native struct at a host address; attributes are its members.

    An integer member reads as an int (128-bit ones too, without a sign) and truncates what
    is written; a nested struct or an array reads as a view. The memory must outlive the view.
    """

    __slots__ = ()

    @property
    def address(self) -> int:
        """Host address of the struct."""
        return ctypes.addressof(self)


def view_of(kind: StructType, address: int) -> Any:
    """Return a view, a `StructView`, of the struct at a host address."""
    return _layout(kind).from_address(address)


class _Wide(ctypes.Structure):
    """128 bits, which ctypes has no integer for."""

    __slots__ = ()
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))

    def get(self) -> int:
        return int(self.low | self.high << 64)

    def set(self, value: int) -> None:
        self.low, self.high = value, value >> 64


class WideArray:
    """An array of 128-bit members: indexed, sized, iterable."""

    __slots__ = ("_items",)

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> int:
        return int(self._items[index].get())

    def __setitem__(self, index: int, value: int) -> None:
        self._items[index].set(value)


@functools.cache
def _layout(kind: StructType) -> type[StructView]:
    """Return the type of views of a struct: its members at their offsets, gaps filled."""
    fields: list[tuple[str, Any]] = []
    space: dict[str, Any] = {"__slots__": (), "_pack_": 1, "_layout_": "ms", "_fields_": fields}
    end = 0
    for name, member in kind.fields.items():
        if member.offset > end:
            fields.append((f"_gap_{end}", ctypes.c_uint8 * (member.offset - end)))
        end = member.offset + member.size
        item = _element(member.kind)
        hidden = "_" if item is _Wide else ""
        if hidden:
            space[name] = _wide(hidden + name, member)
        fields.append((hidden + name, item if member.count is None else item * member.count))
    if kind.size > end:
        fields.append((f"_gap_{end}", ctypes.c_uint8 * (kind.size - end)))
    return type(kind.__name__, (StructView,), space)


def _element(kind: Any) -> Any:
    """Return the ctypes type of one value of a native type."""
    if isinstance(kind, StructType):
        return _layout(kind)
    if isinstance(kind, Bool):
        return ctypes.c_bool
    if isinstance(kind, (Int, Vec128)) and kind.size == ctypes.sizeof(_Wide):
        return _Wide
    return _INTEGERS[kind.size, kind.signed]


def _wide(name: str, member: Field) -> property:
    """Return what makes ints of the 128-bit member that ctypes knows by `name`."""
    if member.count is not None:
        return property(lambda view: WideArray(getattr(view, name)))
    return property(
        lambda view: getattr(view, name).get(),
        lambda view, value: getattr(view, name).set(value),
    )
