"""Dataclasses that cost nothing to define.

`dataclasses.dataclass` compiles five functions for each class, about a
millisecond, and imports `inspect`; a start would spend most of its time there.
A class under `@record` looks and behaves like a frozen one (fields from
annotations, defaults, equality, hash, repr, no assignment), one under
`@mutable_record` like a plain one, with functions that all records share. It
becomes a real dataclass when the standard library first asks for its fields,
so that `dataclasses.fields`, `replace` and `asdict` take it. Modules that the
start of a machine or of a disk tool loads use these, others either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


class _Factory:
    """A default that is made anew for each object."""

    def __init__(self, make: Callable[[], Any], shown: bool) -> None:
        self.make = make
        self.shown = shown


def field(*, default_factory: Callable[[], T], repr: bool = True) -> T:
    """As in `dataclasses`: the default of a field, made for each object; secrets hide in repr."""
    return _Factory(default_factory, repr)  # type: ignore[return-value]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass; fields with defaults come last."""
    _set_up(cls)
    for name, value in (("__hash__", _hash), ("__setattr__", _refuse), ("__delattr__", _refuse)):
        # Defining __eq__ makes Python set __hash__ to None.
        if name not in vars(cls) or (name == "__hash__" and vars(cls)[name] is None):
            setattr(cls, name, value)
    return cls


@dataclass_transform(field_specifiers=(field,))
def mutable_record(cls: type[T]) -> type[T]:
    """Make `cls` a dataclass whose fields may be assigned; fields with defaults come last."""
    _set_up(cls)
    if "__hash__" not in vars(cls):
        cls.__hash__ = None  # type: ignore[assignment]
    return cls


def _set_up(cls: type[Any]) -> None:
    names: list[str] = []
    for base in reversed(cls.__mro__):
        if base is cls or "__dataclass_fields__" in vars(base):
            annotations: dict[str, Any] = vars(base).get("__annotations__", {})
            names += [n for n, kind in annotations.items() if "ClassVar" not in str(kind)]
    own: dict[str, Any] = {
        "__match_args__": tuple(dict.fromkeys(names)),
        "__init__": _init,
        "__repr__": _repr,
        "__eq__": _eq,
        "__dataclass_fields__": _Fields(),
    }
    for name, value in own.items():
        if name not in vars(cls):
            setattr(cls, name, value)


def replace(item: T, **changes: Any) -> T:
    """Return a copy of the record `item` with some fields changed."""
    names: tuple[str, ...] = item.__match_args__  # type: ignore[attr-defined]
    return type(item)(**{name: getattr(item, name) for name in names} | changes)


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """Return the names of a record's fields, in order."""
    names: tuple[str, ...] = kind.__match_args__
    return names


def is_record(kind: Any) -> bool:
    """Whether `kind` is a record or a dataclass."""
    return any("__dataclass_fields__" in vars(base) for base in getattr(kind, "__mro__", ()))


def optional_fields(kind: type[Any]) -> frozenset[str]:
    """Return the names of the fields with a default, of a record or a dataclass."""
    if isinstance(_declared(kind), _Fields):
        return frozenset(name for name in field_names(kind) if hasattr(kind, name))
    from dataclasses import MISSING, fields

    return frozenset(
        f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING
    )


def _declared(kind: type[Any]) -> Any:
    """Return what `kind` says of its fields, without asking for it."""
    return next(
        vars(c)["__dataclass_fields__"] for c in kind.__mro__ if "__dataclass_fields__" in vars(c)
    )


def _init(self: Any, *values: Any, **named: Any) -> None:
    names = self.__match_args__
    fields = self.__dict__
    fields.update(zip(names, values, strict=False))
    if len(values) < len(names):
        for name in names[len(values) :]:
            if name in named:
                fields[name] = named.pop(name)
                continue
            default = getattr(type(self), name, _MISSING)
            if default is _MISSING:
                raise TypeError(f"{type(self).__name__}() needs {name!r}")
            fields[name] = default.make() if isinstance(default, _Factory) else default
    elif len(values) > len(names):
        raise TypeError(f"{type(self).__name__}() takes {len(names)} values, not {len(values)}")
    if named:
        raise TypeError(f"{type(self).__name__}() got unexpected {', '.join(map(repr, named))}")
    after = getattr(self, "__post_init__", None)
    if after is not None:
        after()


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__match_args__)


def _repr(self: Any) -> str:
    kind = type(self)
    shown = ", ".join(
        f"{name}={getattr(self, name)!r}"
        for name in self.__match_args__
        if getattr(getattr(kind, name, None), "shown", True)
    )
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> bool:
    if self is other:
        return True
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse(self: Any, name: str, *_: Any) -> NoReturn:
    raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be changed")


class _Fields:
    """A record's `__dataclass_fields__`, until `dataclasses` asks for them."""

    def __get__(self, item: Any, kind: type[Any]) -> Any:
        import dataclasses

        owner = next(c for c in kind.__mro__ if c.__dict__.get("__dataclass_fields__") is self)
        dataclasses.dataclass(init=False, repr=False, eq=False)(owner)
        return owner.__dict__["__dataclass_fields__"]


_MISSING = object()
