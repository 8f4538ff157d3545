"""Actions as data: what can be asked, with which arguments, when, and what comes of it.

An action is declared by a method without a body. Its signature gives the arguments with
their types, defaults and help, its return type the result, its docstring the summary:

    class MachineActions(Actions):
        @action(states=ALIVE, events=(EventKind.ENDED,))
        def stop(
            self, timeout: Annotated[float, "seconds until a guest that goes on is ended"] = 10.0
        ) -> ExitRecord:
            \"\"\"Have the guest switch itself off, and end it when it does not.\"\"\"

The declared method is a typed client's method, too: it checks what it is given and hands
it to `Actions.perform`, which a client, or any other door, defines. Who does what is asked
for is bound elsewhere: `ringzero.control.machine.actions` in a machine's process,
`ringzero.control.host.actions` for the host.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from ringzero.api.values import EventKind, Status, Value
from ringzero.errors import ConflictError, InvalidValueError, ProtocolError
from ringzero.records import record

Function = TypeVar("Function", bound=Callable[..., Any])

# How long a plain action's answer may take, in seconds. It comes in milliseconds unless the
# host swaps or its disk hangs.
PATIENCE = 30.0
# The default of an argument that must be given.
REQUIRED: Any = type("Required", (), {"__repr__": lambda _: "REQUIRED"})()
# JSON's numbers are exact up to here in every program (RFC 8259 section 6).
_EXACT = 1 << 53
# Parameters of a declaration that are no arguments of the action.
_NOT_ARGUMENTS = ("self", "stream")


class Scope(enum.Enum):
    """What an action is asked of."""

    MACHINE = "machine"
    HOST = "host"


class Link(Protocol):
    """The way to the other side of an action that streams."""

    def send(self, data: bytes) -> None:
        """Send input bytes; b"" is their end. From any thread."""
        ...

    def event(self, kind: str, **content: Any) -> None:
        """Send an event: "signal" with its `name`, "resize" with `rows` and `columns`."""
        ...

    def close(self) -> None:
        """Leave, whatever the other side does. From any thread."""
        ...


class Stream:
    """Who takes what an action that streams sends until its answer; this one takes nothing."""

    def begin(self, link: Link) -> None:
        """Hear that input and events may be sent from now on."""

    def data(self, number: int, content: bytes) -> None:
        """Take bytes of the stream `number` (`ringzero.api.protocol`)."""

    def event(self, kind: str, content: dict[str, Any]) -> None:
        """Hear an event: "waiting", for a guest that takes no commands yet."""


@record
class Argument:
    """One argument.

    `type` is bool, int, float, str, list[str], dict[str, Any], or one of them | None;
    `default` is REQUIRED where a value must be given; `help` is a line for people.
    """

    name: str
    type: Any
    default: Any
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    @property
    def options(self) -> tuple[Any, ...]:
        """The types that a value may have."""
        return get_args(self.type) if isinstance(self.type, types.UnionType) else (self.type,)

    def check(self, value: Any) -> Any:
        """Return `value` if it is of the argument's type; raises InvalidValueError."""
        for option in self.options:
            if _fits(value, option):
                return float(value) if option is float else value
        names = " or ".join(map(_noun, self.options))
        raise InvalidValueError(f"the argument {self.name!r} must be {names}")


@record
class Action:
    """One thing that can be asked.

    `result` is the answer's type: None, bool, int, float, str, a record or a TypedDict of
    `ringzero.api.values`, dict[str, Any], or a list of one of them. `states` are those of a
    machine in which it is allowed; `events` those that it causes; one that `reads` changes
    nothing. An action that `streams` may take long, and with `wants_stream` bytes and events go
    to and fro until its answer; any other answers within `patience` seconds, besides those that
    its argument `timeout` allows.
    """

    name: str
    summary: str
    arguments: tuple[Argument, ...]
    result: Any
    scope: Scope
    states: frozenset[Status]
    events: tuple[EventKind, ...]
    streams: bool
    wants_stream: bool
    patience: float
    reads: bool = False

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that were given, each of its type; raises InvalidValueError."""
        known = {argument.name: argument for argument in self.arguments}
        unknown = sorted(map(str, set(given) - set(known)))
        if unknown:
            raise InvalidValueError(
                f"{self.name} takes no argument {unknown[0]!r}",
                hint=f"known: {', '.join(known)}" if known else None,
            )
        missing = [a.name for a in self.arguments if a.required and a.name not in given]
        if missing:
            raise InvalidValueError(f"{self.name} needs the argument {missing[0]!r}")
        return {name: known[name].check(value) for name, value in given.items()}

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all arguments: those given, and the defaults of the others."""
        return {a.name: a.default for a in self.arguments if not a.required} | self.check(given)

    def answer_time(self, given: Mapping[str, Any]) -> float:
        """Return how long the answer may take, in seconds."""
        return self.patience + float(given.get("timeout") or 0.0)

    def require(self, machine: str, status: Status) -> None:
        """Raise ConflictError where the action is not allowed in the machine's state."""
        if status in self.states:
            return
        hint = None
        if status is Status.PAUSED:
            hint = f"let it go on: `ringzero resume {machine}`"
        elif status.alive and not any(state.alive for state in self.states):
            hint = f"stop it first: `ringzero stop {machine}`"
        elif not status.alive:
            hint = f"start it: `ringzero start {machine}`"
        raise ConflictError(
            f"machine {machine!r} is {status.value}; {self.name!r} needs one that is "
            + _either(state.value for state in Status if state in self.states),
            hint=hint,
        )


class Actions:
    """A set of actions, declared by its methods; a subclass says how they are performed."""

    scope: Scope

    def perform(self, action: Action, arguments: dict[str, Any], stream: Stream) -> Any:
        """Do it, and return a value of the action's result type."""
        raise NotImplementedError


def action(
    *,
    states: Iterable[Status] = (),
    events: Iterable[EventKind] = (),
    streams: bool = False,
    patience: float = PATIENCE,
    reads: bool = False,
) -> Callable[[Function], Function]:
    """Return a decorator that makes the declaration of an action its typed client's method."""

    def declare(function: Function) -> Function:
        code = function.__code__
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        wanted = [name for name in names if name not in _NOT_ARGUMENTS]
        hints = get_type_hints(function, include_extras=True)
        values = function.__defaults__ or ()
        defaults = dict(zip(names[code.co_argcount - len(values) :], values, strict=False))
        summary = (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")

        @functools.cache
        def of(scope: Scope) -> Action:
            return Action(
                name=function.__name__,
                summary=summary[:1].lower() + summary[1:],
                arguments=tuple(_argument(n, hints[n], defaults.get(n, REQUIRED)) for n in wanted),
                result=hints["return"],
                scope=scope,
                states=frozenset(states),
                events=tuple(events),
                streams=streams,
                wants_stream="stream" in names,
                patience=patience,
                reads=reads,
            )

        def ask(self: Actions, *values: Any, **named: Any) -> Any:
            given = dict(zip(names[1:], values, strict=False)) | named
            stream = given.pop("stream", None) or Stream()
            found = of(self.scope)
            return self.perform(found, found.check(given), stream)

        ask.__name__, ask.__doc__ = function.__name__, function.__doc__
        ask.declaration = of  # type: ignore[attr-defined]
        return ask  # type: ignore[return-value]

    return declare


def declared(kind: type[Actions]) -> dict[str, Action]:
    """Return the actions that a class and its bases declare, by name."""
    members = {name: member for base in kind.__mro__[::-1] for name, member in vars(base).items()}
    return {
        name: member.declaration(kind.scope)
        for name, member in members.items()
        if hasattr(member, "declaration")
    }


def to_plain(value: Any) -> Any:
    """Return a result as JSON has it."""
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def from_plain(type_: Any, data: Any) -> Any:
    """Return the result that JSON has told. Raises ProtocolError where it is of another type."""
    if get_origin(type_) is list:
        if isinstance(data, list):
            return [from_plain(get_args(type_)[0], item) for item in data]
    elif isinstance(type_, type) and issubclass(type_, Value):
        found = type_.from_dict(data) if isinstance(data, dict) else None
        if found is not None:
            return found
    elif is_typeddict(type_) or get_origin(type_) is dict:
        if isinstance(data, dict):
            return data
    elif type_ is types.NoneType or _fits(data, type_):
        return None if type_ is types.NoneType else data
    raise ProtocolError("an answer of the wrong type")


def _argument(name: str, hint: Any, default: Any) -> Argument:
    if get_origin(hint) is Annotated:
        return Argument(name, get_args(hint)[0], default, get_args(hint)[1])
    return Argument(name, hint, default)


def _fits(value: Any, type_: Any) -> bool:
    if get_origin(type_) is list:
        return isinstance(value, list) and all(_fits(item, get_args(type_)[0]) for item in value)
    if get_origin(type_) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if type_ in (int, float):
        numbers = (int, float) if type_ is float else int
        # JSON's NaN and infinities are no numbers to reckon with.
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) < _EXACT
    return isinstance(value, type_)


def _noun(type_: Any) -> str:
    if type_ is types.NoneType:
        return "null"
    if get_origin(type_) is list:
        return "a list of text"
    if get_origin(type_) is dict:
        return "an object"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[type_]


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
