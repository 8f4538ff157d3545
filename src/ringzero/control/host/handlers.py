"""Who does which action of those that the host itself does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ringzero.records import record

Function = TypeVar("Function", bound=Callable[..., Any])


@record
class Handler:
    """Who does an action; with `running`, for a machine that runs, too."""

    act: Callable[..., Any]
    running: bool


HANDLERS: dict[str, Handler] = {}


def handles(name: str, *, running: bool = True) -> Callable[[Function], Function]:
    """Return a decorator that binds a handler to the action called `name`."""

    def bind(function: Function) -> Function:
        HANDLERS[name] = Handler(function, running)
        return function

    return bind
