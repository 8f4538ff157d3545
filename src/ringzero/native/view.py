"""Native structs seen from Python, through ctypes, by the addresses they lie at."""

from __future__ import annotations

import ctypes
from typing import Any

from ringzero.native.types import Bool, Field, Int, StructType, Vec128

# Integers of these sizes are stored and read by ctypes itself: memmove would give the interpreter's
# lock away at each store, and another thread might take it.
_CELLS: dict[tuple[int, bool], Any] = {
    (ctypes.sizeof(cell), signed): cell
    for signed, cells in (
        (False, (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)),
        (True, (ctypes.c_int8, ctypes.c_int16, ctypes.c_int32, ctypes.c_int64)),
    )
    for cell in cells
}


def _cell(kind: Any, address: int) -> Any:
    """Return a ctypes object whose `value` is a member of this type; None where there is none."""
    if isinstance(kind, Bool):
        return ctypes.c_bool.from_address(address)
    cell = _CELLS.get((kind.size, kind.signed)) if isinstance(kind, Int) else None
    return None if cell is None else cell.from_address(address)


def _read(kind: Any, address: int) -> Any:
    if isinstance(kind, StructType):
        return StructView(kind, address)
    cell = _cell(kind, address)
    if cell is not None:
        return cell.value
    return int.from_bytes(ctypes.string_at(address, kind.size), "little")


def _write(kind: Any, address: int, value: int) -> None:
    cell = _cell(kind, address)
    if cell is not None:
        cell.value = value
    elif isinstance(kind, (Int, Vec128)):
        data = (value & (1 << 8 * kind.size) - 1).to_bytes(kind.size, "little")
        ctypes.memmove(address, data, len(data))
    else:
        raise TypeError(f"a member of type {kind!r} is set member by member")


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

    __slots__ = ("_address", "_cells", "_kind")
    _address: int
    _kind: StructType
    # Members that were looked at: every exit of a vCPU reads and writes a dozen.
    _cells: dict[str, Any]

    def __init__(self, kind: StructType, address: int) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_address", address)
        object.__setattr__(self, "_cells", {})

    @property
    def address(self) -> int:
        """Host address of the struct."""
        return self._address

    def __getattr__(self, name: str) -> Any:
        cell = self._cells.get(name)
        if cell is not None:
            return cell.value
        member = self._member(name)
        where = self._address + member.offset
        return ArrayView(member, where) if member.count is not None else _read(member.kind, where)

    def __setattr__(self, name: str, value: int) -> None:
        cell = self._cells.get(name)
        if cell is not None:
            cell.value = value
            return
        member = self._member(name)
        if member.count is not None:
            raise TypeError(f"{name} is an array: give an index")
        _write(member.kind, self._address + member.offset, value)

    def _member(self, name: str) -> Field:
        member = self._kind.fields.get(name)
        if member is None:
            raise AttributeError(f"{self._kind.__name__} has no member {name!r}")
        if member.count is None:
            cell = _cell(member.kind, self._address + member.offset)
            if cell is not None:
                self._cells[name] = cell
        return member
