"""`ringzero info`: what this host can run, and how ringzero is set up here."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import stat
from pathlib import Path
from typing import Any

import ringzero
from ringzero.cli.verb import VERBS, Verb, print_json
from ringzero.settings import CACHE_DIR, TABLE


@VERBS.register("info")
class Info(Verb):
    summary = "say what this host can run, and where things are kept"
    examples = "  ringzero info\n  ringzero info --json\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags."""
        parser.add_argument("--json", action="store_true", help="for programs")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Print the facts."""
        facts = collect()
        if arguments.json:
            print_json(facts)
            return 0
        for section, values in facts.items():
            print(f"{section}:")
            width = max((len(key) for key in values), default=0)
            for key, value in values.items():
                print(f"  {key:{width}}  {_line(value)}")
        return 0


def _line(value: Any) -> str:
    """Return what a person wants to know of `value`; all of it is in the JSON."""
    if isinstance(value, dict):
        return ": ".join(map(str, value.values()))
    return str(value)


def collect() -> dict[str, dict[str, Any]]:
    """Return the facts by section, as plain values."""
    from ringzero.image.micro import list_images
    from ringzero.units import format_size

    cache = CACHE_DIR.get()
    return {
        "ringzero": {"version": ringzero.__version__, "python": platform.python_version()},
        "host": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "kvm": _kvm(),
            "apt-get": shutil.which("apt-get") or "not installed",
        },
        "engines": _engines(),
        "cache": {"directory": str(cache), "size": format_size(_size(cache))},
        "images": {image.name: image.digest[:12] for image in list_images(cache)},
        "settings": {
            name: os.environ.get(name) or f"(not set) {setting.help}"
            for name, setting in sorted(TABLE.items())
        },
    }


def _engines() -> dict[str, Any]:
    """Return each engine's verdict on this host; nothing is compiled for it."""
    from ringzero.engine import select
    from ringzero.engine.contract import ENGINES
    from ringzero.errors import RingzeroError

    facts: dict[str, Any] = {}
    for name in ENGINES.names():
        try:
            found = select.judge(ENGINES.get(name)())
            facts[name] = {"usability": found.usability.value, "reason": found.reason}
        except RingzeroError as fault:
            facts[name] = {"usability": "unusable", "reason": fault.message}
    try:
        facts["auto"] = select.choose_auto()[1]
    except RingzeroError as fault:
        facts["auto"] = f"no engine: {fault.message}"
    return facts


def _size(directory: Path) -> int:
    total = 0
    for file in directory.rglob("*"):
        # Others may be at work in the cache, and take files away.
        with contextlib.suppress(OSError):
            found = file.lstat()
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _kvm() -> str:
    if not Path("/dev/kvm").exists():
        return "no /dev/kvm"
    return "present" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "present, not for you"
