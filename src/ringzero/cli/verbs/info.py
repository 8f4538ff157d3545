"""`ringzero info`: what this host can run, and how ringzero is set up here."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path
from typing import Any

import ringzero
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json
from ringzero.settings import CACHE_DIR, TABLE


@VERBS.register("info")
class Info(Verb):
    summary = "say what this host can run, and where things are kept"
    away = Away(AS_IS)
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
                first, *rest = _lines(value)
                print(f"  {key:{width}}  {first}")
                for line in rest:
                    print(f"  {'':{width}}  {line}")
        return 0


def collect() -> dict[str, dict[str, Any]]:
    """Return the facts by section, as plain values."""
    import platform
    import resource
    import shutil

    from ringzero.engine import info as engine_info
    from ringzero.image.micro import list_images
    from ringzero.units import format_size

    cache = CACHE_DIR.get()
    return {
        "ringzero": {"version": ringzero.__version__, **_versions()},
        "host": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _proc("cpuinfo", "model name"),
            "cpus": len(os.sched_getaffinity(0)),
            "memory": _proc("meminfo", "MemTotal"),
            "memory available": _proc("meminfo", "MemAvailable"),
            "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "kvm": _kvm(),
            "apt-get": shutil.which("apt-get") or "not installed",
        },
        "engines": {**engine_info.engines(), "auto": engine_info.chosen()},
        "jail": _jail(),
        "cache": {
            "directory": str(cache),
            **{name: format_size(size) for name, size in _sizes(cache).items()},
        },
        "images": {image.name: image.digest[:12] for image in list_images(cache)},
        "settings": {
            name: os.environ.get(name) or f"(not set) {setting.help}"
            for name, setting in sorted(TABLE.items())
        },
    }


def _lines(value: Any) -> list[str]:
    """Return what a reader gets of one fact; --json gives the same as plain values."""
    if not (isinstance(value, dict) and "usability" in value):
        return [str(value)]
    lines = [f"{value['usability']}: {value['reason']}"]
    for key, fact in value.items():
        if key in ("usability", "reason"):
            continue
        if isinstance(fact, dict):
            # Models that lack nothing are no news.
            fact = "; ".join(f"{name}: {' '.join(of)}" for name, of in fact.items() if of)  # noqa: PLW2901 - its text
        elif isinstance(fact, list):
            fact = " ".join(fact)  # noqa: PLW2901 - its text
        if fact not in ("", None):
            lines.append(f"{key.replace('_', ' ')}: {fact}")
    return lines


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that ringzero needs."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("llvmlite", "zstandard", "lz4"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _proc(name: str, field: str) -> str:
    """Return the first value of `field` in /proc/`name`, or "unknown"."""
    try:
        lines = Path("/proc", name).read_text().splitlines()
    except OSError:
        return "unknown"
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(field))
    return next(values, "unknown")


def _sizes(cache: Path) -> dict[str, int]:
    """Return the bytes in the cache: all of them, and by its directories."""
    sizes = {"size": 0}
    from ringzero.host.files import files_below

    seen = set[int]()
    for file, status in files_below(cache):
        # Layers have names in each image that has them.
        if not stat.S_ISREG(status.st_mode) or status.st_ino in seen:
            continue
        if status.st_nlink > 1:
            seen.add(status.st_ino)
        # As it lies on the disk: images may have holes.
        size = status.st_blocks * 512
        sizes["size"] += size
        first = file.relative_to(cache).parts
        if len(first) > 1:
            sizes[first[0]] = sizes.get(first[0], 0) + size
    return dict(sorted(sizes.items(), key=lambda item: (item[0] != "size", item[0])))


def _jail() -> dict[str, str]:
    """Return what confines a machine's process here, by the mechanism."""
    from ringzero.host.jail.probe import probe

    return {p.name: f"{'holds' if p.holds else 'not here'}: {p.detail}" for p in probe()}


def _kvm() -> str:
    if not os.path.exists("/dev/kvm"):  # noqa: PTH110 - no Path is needed for it
        return "no /dev/kvm"
    return "present" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "present, not for you"
