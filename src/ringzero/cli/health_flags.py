"""Flags that say how it is known whether what runs in a machine is well, as Docker has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ringzero.errors import InvalidValueError
from ringzero.records import replace
from ringzero.units import parse_duration

if TYPE_CHECKING:
    import argparse

    from ringzero.api.values import HealthCheck

# Flags by the field of a health check that they are for, and what they say.
_TIMES = {
    "interval": "from one run of the health check to the next (30s)",
    "timeout": "how long one may take, before it is killed and has failed (30s)",
    "start_period": "how long failures do not count at the beginning (0s)",
    "start_interval": "from one run to the next in that period (5s)",
}
_RETRIES = "retries"
# 30 years in seconds, as a health check bounds times.
_LONGEST = 1e9


def add_health_flags(parser: argparse.ArgumentParser) -> None:
    """Add --health-cmd, its times, and --no-healthcheck."""
    add = parser.add_argument
    add(
        "--health-cmd",
        metavar="CMD",
        default=None,
        help="with -d: a line for the guest's shell that fails when what runs there is not well; "
        "`ps` and `inspect` tell. A container's image may have one of its own",
    )
    for field, told in _TIMES.items():
        add(f"--health-{field.replace('_', '-')}", metavar="TIME", default=None, help=told)
    add(
        f"--health-{_RETRIES}",
        metavar="N",
        type=int,
        default=None,
        help="so many failures in a row make it unhealthy (3)",
    )
    add(
        "--no-healthcheck",
        action="store_true",
        help="with -d: do not run the health check of a container's image",
    )


def contradictions(arguments: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """Yield what is wrong and what to do, each with whether it is so."""
    given = [_flag(field) for field in ("cmd", *_TIMES, _RETRIES) if _value(arguments, field)]
    flags = " and ".join(filter(None, (", ".join(given[:-1]), *given[-1:])))
    yield (
        given and arguments.no_healthcheck,
        f"--no-healthcheck and {flags} say opposite things; leave one of them out",
    )
    yield given and not arguments.detach, f"{flags} without -d; a machine that stays is asked: -d"


def health_check(
    arguments: argparse.Namespace,
    own: HealthCheck | None,
    place: Callable[[Sequence[str]], Sequence[str]],
) -> HealthCheck | None:
    """Return what is to be run; None where there is nothing. Raises InvalidValueError.

    `own` is the image's, of which flags replace what they name; `place` makes user, directory
    and environment part of a command.
    """
    changes = _changes(arguments)
    if arguments.health_cmd is not None:
        from ringzero.api.values import HealthCheck

        words = ("/bin/sh", "-c", arguments.health_cmd)
        own = replace(own, words=words) if own is not None else HealthCheck(words)
    if own is None:
        if changes:
            flags = ", ".join(map(_flag, changes))
            raise InvalidValueError(
                f"{flags}: there is no health check that it is for", hint="add --health-cmd CMD"
            )
        return None
    return replace(own, words=tuple(place(own.words)), **changes)


def check(arguments: argparse.Namespace) -> None:
    """Raise InvalidValueError for a flag's value that makes no sense."""
    if arguments.health_cmd is not None and not arguments.health_cmd.strip():
        raise InvalidValueError("--health-cmd has no command", hint="--no-healthcheck runs none")
    _changes(arguments)


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what flags say of times and retries; zero stands for none, as in Docker."""
    found: dict[str, Any] = {}
    for field in _TIMES:
        if (text := _value(arguments, field)) is None:
            continue
        try:
            seconds = parse_duration(text)
        except InvalidValueError as fault:
            raise InvalidValueError(f"{_flag(field)}: {fault.message}", hint=fault.hint) from None
        if seconds > _LONGEST:
            raise InvalidValueError(f"{_flag(field)}: {text} is too long", hint="30s, 1m30s")
        if seconds:
            found[field] = seconds
    retries = _value(arguments, _RETRIES)
    if retries is not None and retries < 0:
        raise InvalidValueError(f"{_flag(_RETRIES)} {retries} makes no sense", hint="1, 2, ...")
    if retries:
        found[_RETRIES] = retries
    return found


def _value(arguments: argparse.Namespace, field: str) -> Any:
    return getattr(arguments, f"health_{field}")


def _flag(field: str) -> str:
    return f"--health-{field.replace('_', '-')}"
