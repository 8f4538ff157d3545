"""Files that a command line names, carried to another host by ssh, and what it makes, back."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

from ringzero.errors import HostError, InvalidValueError
from ringzero.host.progress import Progress
from ringzero.host.tarstream import Plan, Unpacking, plain_stream
from ringzero.records import record
from ringzero.remote import ssh
from ringzero.remote.address import Address
from ringzero.units import format_size

# How long to tidy up there may take when all is over, in seconds.
_TIDY = 20.0


@record
class At:
    """Where an argument's value stands: in which word, and from which character on."""

    argument: str
    word: int
    begin: int = 0


def places(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[At]:
    """Yield where the arguments' values stand in `words`, which `parser` has read."""
    positional: list[int] = []
    taken = -1
    for at, word in enumerate(words):
        if at <= taken:
            continue
        if not word.startswith("-") or word == "-":
            commands = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
            group = next((choices for choices in commands if word in choices), None)
            if group is not None:
                parser = group[word]
                positional.clear()
            else:
                positional.append(at)
            continue
        name, equals, _ = word.partition("=")
        known = parser._option_string_actions
        if name.startswith("--"):
            action = known.get(name)
            if action is None or action.nargs == 0:
                continue
            yield At(action.dest, at, len(name) + 1) if equals else At(action.dest, at + 1)
            taken = at if equals else at + 1
            continue
        # Short flags in one word; the first that takes a value has the rest of it, or the next.
        for index in range(1, len(word)):
            action = known.get(f"-{word[index]}")
            if action is not None and action.nargs != 0:
                rest = index + 1 < len(word)
                yield At(action.dest, at, index + 1) if rest else At(action.dest, at + 1)
                taken = at if rest else at + 1
                break
    actions = [
        action
        for action in parser._actions
        if not action.option_strings and not isinstance(action.choices, dict)
    ]
    counts = parser._match_arguments_partial(actions, "A" * len(positional))
    for action, count in zip(actions, counts, strict=False):
        for at in positional[:count]:
            yield At(action.dest, at)
        del positional[:count]


class Carrying:
    """A directory on another host, made for the first file and removed at the end.

    Raises HostError, MissingToolError, MissingFileError.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._directory = ""
        self._count = 0
        self._expected: list[tuple[Path, str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory:
            line = f"rm -rf {shlex.quote(self._directory)}"
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                tidy = ssh.shell(self._address, line)
                subprocess.run(tidy, check=False, stdin=subprocess.DEVNULL, timeout=_TIDY)

    def send(self, source: Path) -> str:
        """Carry a file or folder; return its path there."""
        # The folder's name is kept: a deployment is called by it. A link is carried as what it
        # leads to, a file under the link's name.
        if source.is_dir():
            source = source.resolve()
        plan = Plan([source], follow=not source.is_dir())
        folder = Path(os.path.abspath(source)).parent.name  # noqa: PTH100 - no ".." stays
        place, name = self._place(folder), source.name or "contents"
        total, sent = plan.size(), 0
        line = f"tar -x -C {shlex.quote(place)} -f -"
        with Progress().step(f"carrying {source}") as step, self._there(line, input=True) as there:
            assert there.stdin is not None

            def send(data: bytes) -> None:
                nonlocal sent
                _write(there.stdin, data)
                sent += len(data)
                step.update(min(1.0, sent / total) if total else None, format_size(sent))

            plan.write(send)
            there.stdin.close()
        return f"{place}/{name}"

    def expect(self, target: Path) -> str:
        """Return the path there of what the command is to write, for `target` of this host."""
        if target.is_dir():
            raise InvalidValueError(f"{target} is there already", hint="name one that is not")
        there = f"{self._place()}/{target.name}"
        self._expected.append((target, there))
        return there

    def fetch(self) -> None:
        """Carry what the command has written to where it was to be."""
        for target, there in self._expected:
            path = Path(there)
            line = f"tar -c -C {shlex.quote(str(path.parent))} -f - {shlex.quote(path.name)}"
            with (
                Progress().step(f"carrying {target}"),
                Unpacking(target) as unpacking,
                self._there(line) as found,
            ):
                unpacking.take(plain_stream(found.stdout))
                unpacking.place()

    def run(self, words: Sequence[str]) -> int:
        """Run a command of ssh's on the caller's streams; return its exit code."""
        with subprocess.Popen(words) as process:
            try:
                return process.wait()
            except BaseException:
                # It gives the terminal back, if it is let.
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TIDY)
                raise

    def _place(self, folder: str = "") -> str:
        """Return a new directory there, called `folder` where that is said."""
        if not self._directory:
            with self._there("umask 077; mktemp -d") as made:
                assert made.stdout is not None
                self._directory = made.stdout.read().decode().strip()
            if not self._directory.startswith("/"):
                raise HostError(f"{self._address.host} has no place for files: mktemp says nothing")
        self._count += 1
        place = f"{self._directory}/{self._count}" + (f"/{folder}" if folder else "")
        with self._there(f"mkdir -p {shlex.quote(place)}"):
            pass
        return place

    @contextlib.contextmanager
    def _there(self, line: str, *, input: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """Run a line of the shell there, for the block. Raises HostError where it fails."""
        process = subprocess.Popen(
            ssh.shell(self._address, line),
            stdin=subprocess.PIPE if input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        with process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise HostError(f"carrying files to {self._address.host} failed", hint=_said(process))


def _said(process: subprocess.Popen[bytes]) -> str:
    if process.returncode == ssh.FAILED:
        return "ssh could not connect"
    return "what it said stands above; it needs tar and mktemp there"


def _write(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    try:
        pipe.write(data)
    except BrokenPipeError:
        raise HostError("the other host takes no more of it") from None
