"""What an action is, and the one table of them.

An action is a function over a machine's keeper, registered by decoration; its
signature is its definition: names, types and defaults of the arguments. Server,
client and command line are made from the table.

    @action("pause", "stop the guest until `resume`")
    def pause(keeper: Keeper) -> None: ...
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ringzero.errors import InvalidValueError, NotFoundError

Function = TypeVar("Function", bound=Callable[..., Any])

# Parameters that the server gives and no client may.
_GIVEN = ("keeper", "call")


@dataclass(frozen=True)
class Argument:
    """One argument: its name, its type (bool, int, float, str, list[str], or one of them | None).

    `default` is inspect.Parameter.empty where a value must be given.
    """

    name: str
    type: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is inspect.Parameter.empty

    def check(self, value: Any) -> Any:
        """Return `value` if it is of the argument's type; raises InvalidValueError."""
        for option in _options(self.type):
            if _fits(value, option):
                return float(value) if option is float else value
        names = " or ".join(_name(option) for option in _options(self.type))
        raise InvalidValueError(f"the argument {self.name!r} must be {names}")


@dataclass(frozen=True)
class Action:
    """One thing that can be asked of a running machine.

    `streams` says that bytes go to and fro until its answer. The handler takes
    the keeper, the call where it streams, and the arguments by name.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    handler: Callable[..., Any]
    streams: bool

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments, each of its type; raises InvalidValueError."""
        known = {argument.name: argument for argument in self.arguments}
        unknown = sorted(map(str, set(given) - set(known)))
        if unknown:
            raise InvalidValueError(f"{self.name} takes no argument {unknown[0]!r}")
        missing = [a.name for a in self.arguments if a.required and a.name not in given]
        if missing:
            raise InvalidValueError(f"{self.name} needs the argument {missing[0]!r}")
        return {name: known[name].check(value) for name, value in given.items()}


ACTIONS: dict[str, Action] = {}


def action(name: str, summary: str, *, streams: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that enters a handler into the table."""

    def enter(handler: Function) -> Function:
        ACTIONS[name] = Action(name, summary, _arguments(handler), handler, streams)
        return handler

    return enter


def get(name: object) -> Action:
    """Return the action called `name`; raises NotFoundError."""
    found = ACTIONS.get(name) if isinstance(name, str) else None
    if found is None:
        raise NotFoundError(
            f"a machine knows no action {str(name)[:64]!r}", hint=f"known: {', '.join(ACTIONS)}"
        )
    return found


def _arguments(handler: Callable[..., Any]) -> tuple[Argument, ...]:
    parameters = inspect.signature(handler).parameters.values()
    wanted = [p for p in parameters if p.name not in _GIVEN]
    local = dict.fromkeys(("Keeper", "Call"), Any)
    hints = get_type_hints(handler, localns=local)
    return tuple(Argument(p.name, hints[p.name], p.default) for p in wanted)


def _options(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if isinstance(type_, types.UnionType) else (type_,)


def _fits(value: Any, type_: Any) -> bool:
    if get_origin(type_) is list:
        return isinstance(value, list) and all(_fits(item, get_args(type_)[0]) for item in value)
    if type_ in (int, float):
        numbers = (int, float) if type_ is float else int
        # JSON's NaN and infinities are no numbers to reckon with.
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < 1 << 53
    return isinstance(value, type_)


def _name(type_: Any) -> str:
    if type_ is types.NoneType:
        return "null"
    if get_origin(type_) is list:
        return "a list of text"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type_]
