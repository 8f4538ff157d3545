"""Which engine runs a machine: `auto` measures, and remembers until the host boots again."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from ringzero.engine.contract import ENGINES, Availability, Engine, Usability
from ringzero.errors import EngineUnavailableError, HostError
from ringzero.host.files import atomic_file
from ringzero.settings import CACHE_DIR

AUTO, KVM, SOFT = "auto", "kvm", "soft"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
DEVICE = Path("/dev/kvm")
# Raised when the measurement changes, so that older verdicts do not count.
PROBE_VERSION = 3


def choose(name: str = AUTO) -> Engine:
    """Return the engine called `name`, ready to make machines.

    `auto` gives KVM where it runs kernels at a useful speed, else the software
    engine. An engine asked for by name is given even where it is slow. Raises
    NotFoundError for an unknown name, EngineUnavailableError with the reason
    and the way out where it cannot run at all.
    """
    if name == AUTO:
        return choose_auto()[0]
    engine = ENGINES.get(name)()
    found = judge(engine)
    if found.usability is Usability.UNUSABLE:
        others = [other for other in ENGINES.names() if other != name]
        raise EngineUnavailableError(
            f"the engine {name!r} cannot run here: {found.reason}",
            hint=f"--engine {others[0] if len(others) == 1 else AUTO} may",
            engine=name,
        )
    return engine


# Takes a line for the user, and whether it is news: what it says was measured just now.
Tell = Callable[[str, bool], None]


def choose_auto(tell: Tell | None = None) -> tuple[Engine, str]:
    """Return what `auto` chooses, and one line that says why.

    `tell` gets that line when KVM was measured and found too slow.
    """
    kvm = ENGINES.get(KVM)()
    found = judge(kvm, tell)
    if found.usability is Usability.USABLE:
        return kvm, f"engine kvm: {found.reason}"
    return ENGINES.get(SOFT)(), f"engine soft, because {found.reason}"


def judge(engine: Engine, tell: Tell | None = None) -> Availability:
    """Return the engine's verdict on this host, measured at most once per boot of the host.

    Only measurements are remembered: that a device is missing or closed is
    found out at once, and may change at any time. `tell` as for `choose_auto`.
    """
    if engine.name != KVM:
        return engine.availability()
    key = _verdict_key()
    known = _read_verdict(key) if key else None
    found = known or engine.availability()
    if known is None and key and found.usability is not Usability.UNUSABLE:
        _write_verdict(key, found)
    if tell is not None and found.usability is Usability.SLOW:
        tell(f"engine soft, because {found.reason}", known is None)
    return found


def _verdict_key() -> dict[str, str | int] | None:
    """Return what a verdict holds for: this boot, this device node, this user's access."""
    try:
        boot = BOOT_ID.read_text().strip()
        device = DEVICE.stat()
    except OSError:
        return None
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return None
    return {"boot": boot, "device": device.st_rdev, "probe": PROBE_VERSION}


def _verdict_file() -> Path:
    return CACHE_DIR.get() / "engine-kvm.json"


def _read_verdict(key: dict[str, str | int]) -> Availability | None:
    try:
        saved = json.loads(_verdict_file().read_text())
        if saved["for"] != key:
            return None
        return Availability(Usability(saved["usability"]), str(saved["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Nothing saved, or somebody else's bytes: measure.
        return None


def _write_verdict(key: dict[str, str | int], found: Availability) -> None:
    saved = {"for": key, "usability": found.usability.value, "reason": found.reason}
    # A cache that cannot be written costs a measurement next time, no more.
    with contextlib.suppress(HostError), atomic_file(_verdict_file()) as file:
        file.write(json.dumps(saved).encode())
