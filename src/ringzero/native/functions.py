"""Decorators that mark functions of the native language, and their handles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, overload

from ringzero.native.generation import builder

P = ParamSpec("P")
R = TypeVar("R")


# Every native function that exists, so that each is compiled where it is at home.
NATIVE_FUNCTIONS: list[NativeFunction[Any, Any]] = []


class NativeFunction(Generic[P, R]):
    """A function compiled to native code of its own; calls to it are real calls.

    Every parameter and the result are annotated with native types (a Struct
    class means a pointer to it).
    """

    def __init__(
        self, function: Callable[P, R], *, inline: str, noreturn: bool, convention: str
    ) -> None:
        self.function = function
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self.inline = inline
        self.noreturn = noreturn
        self.convention = convention
        self.__doc__ = function.__doc__
        NATIVE_FUNCTIONS.append(self)

    def signature(self) -> tuple[list[Any], Any]:
        """Return the parameter types and the result type (None for nothing)."""
        import inspect  # for compiling alone: what is compiled already is only called

        hints = inspect.get_annotations(self.function, eval_str=True)
        result = hints.pop("return", None)
        return list(hints.values()), result

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return builder().call(self, args)  # type: ignore[no-any-return]


class StagedFunction(Generic[P, R]):
    """A function run at generation time, inline in its caller.

    Its arguments may be native values or any Python objects; `if`, `while`
    and `return` on native values become branches, on Python objects they are
    decided at once.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self.function = function
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self

        def bound(*args: Any, **kwargs: Any) -> Any:
            return self(instance, *args, **kwargs)

        return bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return builder().inline(self, args, kwargs)  # type: ignore[no-any-return]


@overload
def native(function: Callable[P, R]) -> NativeFunction[P, R]: ...
@overload
def native(
    *, inline: str = "", noreturn: bool = False, convention: str = ""
) -> Callable[[Callable[P, R]], NativeFunction[P, R]]: ...
def native(
    function: Any = None, *, inline: str = "", noreturn: bool = False, convention: str = ""
) -> Any:
    """Mark a function as native.

    `inline` is "", "always" or "never"; `noreturn` says that it never comes
    back (it raises a guest exception); `convention` is LLVM's name of a calling
    convention when it is not C's.
    """

    def mark(target: Callable[P, R]) -> NativeFunction[P, R]:
        return NativeFunction(target, inline=inline, noreturn=noreturn, convention=convention)

    return mark if function is None else mark(function)


def staged(function: Callable[P, R]) -> StagedFunction[P, R]:
    """Mark a function as staged: run at generation time, inline in its caller."""
    return StagedFunction(function)
