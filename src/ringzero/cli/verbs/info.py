"""`ringzero info`: what this host can run, and how ringzero is set up here."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
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


def collect() -> dict[str, dict[str, Any]]:
    """Return the facts by section, as plain values."""
    from ringzero.engine import info as engine_info
    from ringzero.image.micro import list_images
    from ringzero.units import format_size

    cache = CACHE_DIR.get()
    size = sum(
        file.stat().st_size for file in cache.rglob("*") if file.is_file() and not file.is_symlink()
    )
    return {
        "ringzero": {"version": ringzero.__version__, "python": platform.python_version()},
        "host": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": os.cpu_count(),
            "kvm": _kvm(),
            "apt-get": shutil.which("apt-get") or "not installed",
        },
        "engines": {**engine_info.engines(), "auto": engine_info.chosen()},
        "cache": {"directory": str(cache), "size": format_size(size)},
        "images": {image.name: image.digest[:12] for image in list_images(cache)},
        "settings": {
            name: os.environ.get(name) or f"(not set) {setting.help}"
            for name, setting in sorted(TABLE.items())
        },
    }


def _line(value: Any) -> Any:
    """Return what a reader gets of one fact; --json gives all of it."""
    if isinstance(value, dict) and "usability" in value:
        return f"{value['usability']}: {value['reason']}"
    return value


def _kvm() -> str:
    if not os.path.exists("/dev/kvm"):  # noqa: PTH110 - no Path is needed for it
        return "no /dev/kvm"
    return "present" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "present, not for you"
