"""Which engine runs a machine: `auto` measures, and remembers until the host boots again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringzero.engine.contract import ENGINES, Availability, Engine, Usability
from ringzero.errors import EngineUnavailableError, HostError
from ringzero.host.files import atomic_file
from ringzero.isa.contract import Architecture
from ringzero.settings import CACHE_DIR

AUTO = "auto"
# Behind an engine's name: take it though it was measured to be too slow for Linux.
INSIST = "!"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Raised when the measurement changes, so that older verdicts do not count.
PROBE_VERSION = 3


def choose(name: str = AUTO, architecture: Architecture[Any] | None = None) -> Engine:
    """Return the engine called `name`, ready to make machines, of `architecture` if one is given.

    `auto` gives the engine of the highest rank that runs kernels at a useful speed here.
    An engine asked for by name is given where it is slow only when the name ends in `!`
    ("kvm!"). Raises NotFoundError for an unknown name, EngineUnavailableError with the
    reason and the way out where the engine cannot run, or is too slow for Linux to come up.
    """
    if name == AUTO:
        return choose_auto(architecture=architecture)[0]
    insists, name = name.endswith(INSIST), name.removesuffix(INSIST)
    if name == AUTO:
        raise EngineUnavailableError(
            f"{AUTO!r} is a choice, not an engine to insist on", hint="name one: --engine kvm!"
        )
    engine = ENGINES.get(name)()
    if architecture is not None and not engine.runs(architecture):
        raise EngineUnavailableError(
            f"the engine {name!r} runs no {architecture.name} guests",
            hint=f"--engine {AUTO} may",
            engine=name,
        )
    found = judge(engine)
    if found.usability is Usability.UNUSABLE:
        others = [other for other in ENGINES.names() if other != name]
        raise EngineUnavailableError(
            f"the engine {name!r} cannot run here: {found.reason}",
            hint=f"--engine {others[0] if len(others) == 1 else AUTO} may",
            engine=name,
        )
    if found.usability is Usability.SLOW and not insists:
        raise EngineUnavailableError(
            f"the engine {name!r} is too slow here: {found.reason}, "
            f"and Linux takes some thousand million to come up",
            hint=f"--engine {AUTO} takes a quicker one; --engine {name}{INSIST} insists",
            engine=name,
        )
    return engine


def warning(name: str) -> str | None:
    """Return what a user should know who insists on the engine `name`; None where all is well."""
    if not name.endswith(INSIST):
        return None
    found = judge(ENGINES.get(name.removesuffix(INSIST))())
    if found.usability is not Usability.SLOW:
        return None
    return f"engine {name.removesuffix(INSIST)}, as you insist: {found.reason}"


# Takes a line for the user, and whether it is news: what it says was measured just now.
Tell = Callable[[str, bool], None]


def choose_auto(
    tell: Tell | None = None, architecture: Architecture[Any] | None = None
) -> tuple[Engine, str]:
    """Return what `auto` chooses for guests of `architecture`, and one line that says why.

    `tell` gets that line when a better engine was measured and found too slow. Raises
    EngineUnavailableError where none is usable.
    """
    passed: list[tuple[Availability, bool]] = []
    engines = [ENGINES.get(name)() for name in ENGINES.names()]
    if architecture is not None:
        engines = [engine for engine in engines if engine.runs(architecture)]
        if not engines:
            raise EngineUnavailableError(f"no engine runs {architecture.name} guests")
    for engine in sorted(engines, key=lambda engine: -engine.rank):
        found, news = _judge(engine)
        if found.usability is not Usability.USABLE:
            passed.append((found, news))
            continue
        if not passed:
            return engine, f"engine {engine.name}: {found.reason}"
        why = "; ".join(other.reason for other, _ in passed)
        line = f"engine {engine.name}, because {why}"
        if tell is not None and any(o.usability is Usability.SLOW for o, _ in passed):
            tell(line, any(fresh for _, fresh in passed))
        return engine, line
    raise EngineUnavailableError(
        "no engine runs here: " + "; ".join(found.reason for found, _ in passed)
    )


def judge(engine: Engine) -> Availability:
    """Return the engine's verdict on this host, measured at most once per boot of the host.

    Only measurements are remembered: that a device is missing or closed is
    found out at once, and may change at any time.
    """
    return _judge(engine)[0]


def _judge(engine: Engine) -> tuple[Availability, bool]:
    """Return the verdict, and whether it is a measurement of just now."""
    key = _verdict_key(engine)
    if key is None:
        return engine.availability(), False
    known = _read_verdict(engine, key)
    if known is not None:
        return known, False
    found = engine.availability()
    if found.usability is not Usability.UNUSABLE:
        _write_verdict(engine, key, found)
    return found, True


def _verdict_key(engine: Engine) -> dict[str, str | int] | None:
    """Return what a verdict holds for: this boot, this device node, this user's access."""
    if engine.device is None:
        return None
    try:
        boot = BOOT_ID.read_text().strip()
        device = engine.device.stat()
    except OSError:
        return None
    if not os.access(engine.device, os.R_OK | os.W_OK):
        return None
    return {"boot": boot, "device": device.st_rdev, "probe": PROBE_VERSION}


def _verdict_file(engine: Engine) -> Path:
    return CACHE_DIR.get() / f"engine-{engine.name}.json"


def _read_verdict(engine: Engine, key: dict[str, str | int]) -> Availability | None:
    try:
        saved = json.loads(_verdict_file(engine).read_text())
        if saved["for"] != key:
            return None
        return Availability(Usability(saved["usability"]), str(saved["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing saved, or somebody else's bytes: measure.
        return None


def _write_verdict(engine: Engine, key: dict[str, str | int], found: Availability) -> None:
    saved = {"for": key, "usability": found.usability.value, "reason": found.reason}
    # A cache that cannot be written costs a measurement next time, no more.
    with contextlib.suppress(HostError), atomic_file(_verdict_file(engine)) as file:
        file.write(json.dumps(saved).encode())
