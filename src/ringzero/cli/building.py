"""`ringzero image build` with a Vmfile: its flags, and what people see of the steps."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringzero.errors import InvalidValueError, MissingFileError

if TYPE_CHECKING:
    from ringzero.api.values import ImageSummary

# The first that is there is taken.
FILES = ("Vmfile", "Dockerfile")
_SHOWN = 72
# Bytes of a step's output that are held in memory until it is shown.
_HELD = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a build from a Vmfile."""
    parser.add_argument("-t", "--tag", action="append", default=[], metavar="NAME[:TAG]")
    parser.add_argument(
        "-f", "--file", metavar="FILE", help="default: Vmfile, or Dockerfile, of the directory"
    )
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME[=VALUE]", help="for ARG NAME"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="id=ID[,src=FILE|,env=NAME]",
        help="for RUN --mount=type=secret; never in a layer",
    )
    parser.add_argument("--target", metavar="STAGE", help="build this stage, and what it needs")
    parser.add_argument("--no-cache", action="store_true", help="run every RUN again")
    parser.add_argument("--network", choices=("user", "none"), default="user", help="of every RUN")
    parser.add_argument("-m", "--memory", metavar="SIZE", help="of the machine that RUNs (1G)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of that machine (1)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="stages at once (default: as many as CPUs)"
    )
    parser.add_argument(
        "--progress",
        choices=("auto", "plain", "json", "quiet"),
        default="auto",
        help="how steps are told; json: an object a line on stdout",
    )


def is_build(arguments: argparse.Namespace) -> bool:
    """Whether a Vmfile is meant, and not one of ringzero's own images by its name."""
    flags = arguments.tag or arguments.file or arguments.build_arg or arguments.target
    name = arguments.name
    return bool(flags or name in (".", "..") or "/" in name or (Path(name).is_dir()))


def build(arguments: argparse.Namespace) -> ImageSummary:
    """Build the image, and return it as plain data. Raises what `ringzero.build` raises."""
    from ringzero.build.builder import build as carry_out
    from ringzero.build.job import Options
    from ringzero.build.origin import Context
    from ringzero.build.vmfile.parse import parse
    from ringzero.build.worker import MEMORY
    from ringzero.host.progress import Progress
    from ringzero.image.oci.reference import parse_reference
    from ringzero.settings import CACHE_DIR
    from ringzero.units import parse_size

    # Without a name of its own it is the directory, as `docker build` has it.
    directory = Path(arguments.name)
    context = Context(directory)
    path, text = _read(arguments.file, directory)
    listener = _Steps(arguments.progress)
    options = Options(
        arguments=dict(_argument(item) for item in arguments.build_arg),
        target=arguments.target,
        names=tuple(parse_reference(name) for name in arguments.tag),
        use_cache=not arguments.no_cache,
        network=arguments.network != "none",
        memory=parse_size(arguments.memory) if arguments.memory else MEMORY,
        cpus=arguments.cpus,
        jobs=_jobs(arguments.jobs),
        epoch=_epoch(),
        secrets=dict(_secret(item) for item in arguments.secret),
    )
    quiet = arguments.progress in ("json", "quiet")
    try:
        image = carry_out(
            parse(text, path),
            context,
            options,
            cache=CACHE_DIR.get(),
            listener=listener,
            progress=Progress(enabled=not quiet),
        )
    finally:
        listener.close()
    return image.summary()


def _jobs(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise InvalidValueError(f"--jobs {given} is no number of stages", hint="--jobs 2")
    return given


def prune() -> int:
    """Remove what builds have kept; return how many bytes that frees."""
    from ringzero.build.cache import BuildCache
    from ringzero.settings import CACHE_DIR

    return BuildCache(CACHE_DIR.get()).prune()


def _read(name: str | None, directory: Path) -> tuple[str, str]:
    """Return a Vmfile's name and text; "-" is standard input. Raises MissingFileError."""
    from ringzero.host.files import host_error

    if name == "-":
        return "-", sys.stdin.read()
    paths = [Path(name)] if name else [directory / each for each in FILES]
    for path in paths:
        try:
            return str(path), path.read_text("utf-8", "surrogateescape")
        except FileNotFoundError:
            continue
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
    raise MissingFileError(
        f"there is no {name or 'Vmfile'} in {directory}" if not name else f"there is no {name}",
        hint="docs/vmfile.md tells how to write one; --file names another",
        path=paths[0],
    )


def _argument(text: str) -> tuple[str, str]:
    """Return a --build-arg; one without a value is the environment's. Raises InvalidValueError."""
    name, equals, value = text.partition("=")
    if not name:
        raise InvalidValueError(f"--build-arg {text!r} has no name", hint="--build-arg NAME=VALUE")
    if not equals:
        found = os.environ.get(name)
        if found is None:
            raise InvalidValueError(
                f"--build-arg {name}: there is no such variable", hint=f"--build-arg {name}=VALUE"
            )
        return name, found
    return name, value


def _secret(text: str) -> tuple[str, bytes]:
    """Return a --secret's id and content. Raises InvalidValueError, HostError."""
    from ringzero.host.files import host_error

    given = dict(item.partition("=")[::2] for item in text.split(","))
    name, path = given.pop("id", ""), given.pop("src", given.pop("source", ""))
    variable = given.pop("env", "")
    given.pop("type", None)
    if not name or given or (path and variable):
        raise InvalidValueError(
            f"--secret {text!r} is not understood", hint="--secret id=ID,src=FILE or id=ID,env=NAME"
        )
    if not path:
        value = os.environ.get(variable or name)
        if value is None:
            raise InvalidValueError(f"--secret {name}: there is no variable {variable or name}")
        return name, os.fsencode(value)
    try:
        return name, Path(path).read_bytes()
    except OSError as fault:
        raise host_error(fault, "read", path) from fault


def _epoch() -> int | None:
    """Return $SOURCE_DATE_EPOCH, the time that files get (reproducible-builds.org)."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise InvalidValueError(f"SOURCE_DATE_EPOCH is {text!r}, and no number of seconds")
    return int(text)


class _Steps:
    """Tells of steps on stderr, as they are, or as JSON on stdout; from several threads.

    What steps at the same time say is kept apart: one is shown as it goes, the others when it has
    ended.
    """

    def __init__(self, how: str) -> None:
        self._how = how
        self._lock = threading.Lock()
        # In the order in which they began; the first is the one that is shown.
        self._running: dict[int, _Step] = {}

    def begins(self, number: int, count: int, text: str) -> None:
        line = " ".join(text.split())
        shown = line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."
        with self._lock:
            self._tell({"step": number, "of": count, "instruction": text})
            if self._how in ("auto", "plain"):
                self._running[number] = _Step(number, f"[{number}/{count}] {shown}")
                self._show()

    def says(self, number: int, data: bytes) -> None:
        with self._lock:
            self._tell({"step": number, "output": data.decode("utf-8", "replace")})
            if number in self._running:
                self._running[number].says(data)

    def ends(self, number: int, seconds: float, *, cached: bool) -> None:
        with self._lock:
            self._tell({"step": number, "seconds": round(seconds, 3), "cached": cached})
            if number in self._running:
                self._running[number].note = "cached" if cached else f"{seconds:.1f} s"
                self._show()

    def close(self) -> None:
        """Show what has not ended, and end its lines."""
        with self._lock:
            while self._running:
                step = next(iter(self._running.values()))
                step.show()
                step.end()
                del self._running[step.number]

    def _show(self) -> None:
        while self._running:
            step = next(iter(self._running.values()))
            step.show()
            if not step.note:
                return
            step.end()
            del self._running[step.number]

    def _tell(self, value: dict[str, Any]) -> None:
        if self._how == "json":
            print(json.dumps(value), flush=True)


class _Step:
    """A step on stderr: its head, what it says, and the note that it ends with."""

    def __init__(self, number: int, head: str) -> None:
        self.number = number
        self.note = ""
        self._head = head
        self._shown = False
        # Whether the head's line is still to be ended.
        self._open = False
        # What is said before it is shown, which may be much.
        self._held: tempfile.SpooledTemporaryFile[bytes] | None = None

    def show(self) -> None:
        """Show it, and all that it says from now on."""
        if self._shown:
            return
        self._shown = self._open = True
        sys.stderr.write(self._head)
        if self._held is not None:
            self._held.seek(0)
            while data := self._held.read(1 << 16):
                self._write(data)
            self._held.close()
        sys.stderr.flush()

    def says(self, data: bytes) -> None:
        """Take what it says."""
        if self._shown:
            self._write(data)
            sys.stderr.flush()
            return
        if self._held is None:
            self._held = tempfile.SpooledTemporaryFile(_HELD)  # noqa: SIM115 - until it is shown
        self._held.write(data)

    def end(self) -> None:
        """Show how it ended, if it did."""
        if self.note:
            sys.stderr.write(f"  {self.note}\n" if self._open else f"[{self.number}] {self.note}\n")
        elif self._open:
            sys.stderr.write("\n")

    def _write(self, data: bytes) -> None:
        if self._open:
            sys.stderr.write("\n")
            self._open = False
        sys.stderr.write(data.decode("utf-8", "replace"))
