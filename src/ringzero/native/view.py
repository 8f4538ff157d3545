"""Native structs seen from Python, through ctypes, by the addresses they lie at."""

from __future__ import annotations

import ctypes
from typing import Any

from ringzero.native.types import Bool, Field, Int, StructType, Vec128


def _read(kind: Any, address: int) -> Any:
    if isinstance(kind, StructType):
        return StructView(kind, address)
    if isinstance(kind, Bool):
        return bool(ctypes.c_uint8.from_address(address).value)
    raw = ctypes.string_at(address, kind.size)
    return int.from_bytes(raw, "little", signed=isinstance(kind, Int) and kind.signed)


# Integers of these sizes are stored by ctypes itself: memmove would give the interpreter's lock
# away at each store, and another thread might take it.
_STORES: dict[int, Any] = {
    1: ctypes.c_uint8,
    2: ctypes.c_uint16,
    4: ctypes.c_uint32,
    8: ctypes.c_uint64,
}


def _write(kind: Any, address: int, value: int) -> None:
    if isinstance(kind, Int):
        store = _STORES.get(kind.size)
        if store is not None:
            store.from_address(address).value = value
            return
        data = (value & kind.mask).to_bytes(kind.size, "little")
    elif isinstance(kind, (Bool, Vec128)):
        data = int(value).to_bytes(kind.size, "little")
    else:
        raise TypeError(f"a member of type {kind!r} is set member by member")
    ctypes.memmove(address, data, len(data))


class ArrayView:
    """An array member: indexed, sized, iterable."""

    __slots__ = ("_address", "_count", "_kind")

    def __init__(self, member: Field, address: int) -> None:
        self._kind = member.kind
        self._count = member.count or 0
        self._address = address

    def __len__(self) -> int:
        return self._count

    def _element(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._address + index * int(self._kind.size)

    def __getitem__(self, index: int) -> Any:
        return _read(self._kind, self._element(index))

    def __setitem__(self, index: int, value: int) -> None:
        _write(self._kind, self._element(index), value)


class StructView:
    """A native struct at a host address; attributes are its members.

    An integer member reads as an int (128-bit ones too) and truncates what is
    written; a nested struct or an array reads as a view. The memory must
    outlive the view.
    """

    __slots__ = ("_address", "_kind")
    _address: int
    _kind: StructType

    def __init__(self, kind: StructType, address: int) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_address", address)

    @property
    def address(self) -> int:
        """Host address of the struct."""
        return self._address

    def __getattr__(self, name: str) -> Any:
        member = self._kind.fields.get(name)
        if member is None:
            raise AttributeError(f"{self._kind.__name__} has no member {name!r}")
        where = self._address + member.offset
        return ArrayView(member, where) if member.count is not None else _read(member.kind, where)

    def __setattr__(self, name: str, value: int) -> None:
        member = self._kind.fields.get(name)
        if member is None:
            raise AttributeError(f"{self._kind.__name__} has no member {name!r}")
        if member.count is not None:
            raise TypeError(f"{name} is an array: give an index")
        _write(member.kind, self._address + member.offset, value)
