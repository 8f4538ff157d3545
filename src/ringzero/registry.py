"""The one plug-in idiom: a registry of named things, each in a module of its own.

A package that holds plug-ins makes one registry; a plug-in registers itself
where it is defined; the registry imports the module of that name on demand,
so that nothing is loaded that is not used:

    FORMATS: Registry[type[Disk]] = Registry("disk format", "ringzero.disk.formats")

    @FORMATS.register("raw")
    class RawDisk(Disk): ...

    FORMATS.get("raw")       # imports ringzero.disk.formats.raw
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ringzero.errors import NotFoundError

T = TypeVar("T")
Item = TypeVar("Item")

# What stands behind the first dot in the name of a plug-in's file: a package has none.
_PACKAGE, _MODULE = "", "py"


class Registry(Generic[T]):
    """Named plug-ins of one kind, found by module name in `packages`.

    `noun` is what a user calls one of them; it appears in messages. Every module of the packages
    is a plug-in, unless its name starts with an underscore. With `nested` plug-ins are packages
    themselves, and modules beside them are something else.
    """

    def __init__(self, noun: str, *packages: str, nested: bool = False) -> None:
        self.noun = noun
        self.packages = packages
        self._kinds = (_PACKAGE,) if nested else (_PACKAGE, _MODULE)
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[Item], Item]:
        """Return a decorator that enters its target under `name`.

        A second registration of one name is a programming error (ValueError).
        """

        def enter(item: Item) -> Item:
            if name in self._items:
                raise ValueError(f"{self.noun} {name!r} is registered twice")
            self._items[name] = item  # type: ignore[assignment]
            return item

        return enter

    def get(self, name: str) -> T:
        """Return the plug-in called `name`; raises NotFoundError with the known names."""
        if name not in self:
            known = ", ".join(self.names())
            raise NotFoundError(f"no {self.noun} called {name!r}", hint=f"known: {known}")
        return self._items[name]

    def __contains__(self, name: str) -> bool:
        """Return whether there is a plug-in called `name`, which is loaded by this."""
        if name in self._items:
            return True
        if not name.isidentifier() or name.startswith("_"):
            return False
        for package in self.packages:
            module = f"{package}.{name}"
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as fault:
                if fault.name != module:
                    raise
        return name in self._items

    def names(self) -> list[str]:
        """Return all names, loaded or not, sorted."""
        places = (p for name in self.packages for p in importlib.import_module(name).__path__)
        # Not by pkgutil, whose imports take longer than everything else here.
        files = (file.name for place in places for file in os.scandir(place))
        named = {name for name, _, kind in (f.partition(".") for f in files) if kind in self._kinds}
        return sorted({n for n in named if not n.startswith("_")} | set(self._items))

    def __iter__(self) -> Iterator[tuple[str, T]]:
        """Load every plug-in and yield (name, plug-in)."""
        for name in self.names():
            yield name, self.get(name)
