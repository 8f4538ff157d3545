"""A client's command line, read in the process of a pool's machine as the client would read it.

All that the client would load is loaded here, once, before there is a client. What a machine of
the pool is not for is found before anything has happened.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ringzero.cli import flags
from ringzero.cli.command_flags import advise_quoting
from ringzero.cli.main import told
from ringzero.cli.pool import place
from ringzero.cli.verbs.run import Run, takes_from_pool
from ringzero.errors import RingzeroError
from ringzero.image import names
from ringzero.records import record


@record
class Line:
    """A command line that is a machine's of this pool."""

    words: list[str]
    arguments: Any

    def run(self, how: Callable[..., int]) -> int:
        """Return the exit code of `how`, which takes what `session.run` does; faults are told."""
        arguments = self.arguments

        def run() -> int:
            code = how(
                words=arguments.command,
                timeout=arguments.timeout,
                stats=arguments.stats,
                as_json=arguments.json,
            )
            advise_quoting(arguments.command, code)
            return code

        try:
            return told(run, self.words)
        except SystemExit as end:
            # A signal that ends the client.
            return end.code if isinstance(end.code, int) else 1


def read(words: Sequence[str], key: str) -> Line | None:
    """Return the command line `words` where it is for a machine of the pool `key`."""
    run = Run()
    try:
        own, command = run.split(list(words[1:]))
        arguments = flags.parse(run, own)
        if words[0] != run.name or arguments is None:
            return None
        arguments.faults, arguments.command, arguments.shell = [], command or [], False
        if not takes_from_pool(arguments):
            return None
        if arguments.image is not None and not names.is_here(arguments.image):
            return None
        config = run.describe(arguments)
    except RingzeroError:
        # The client finds the same, and tells it.
        return None
    return Line(list(words), arguments) if place.key_of(config) == key else None


@contextlib.contextmanager
def like(environment: dict[str, str], directory: int) -> Iterator[bool]:
    """Have a client's environment and current directory in the block: whether they can be had.

    What depends on the settings may be known already: only those that are like ours will do.
    """
    before, ours = dict(os.environ), place.settings()
    try:
        _become(environment)
        os.fchdir(directory)
        yield place.settings() == ours
    except OSError:
        yield False
    finally:
        _become(before)
        os.chdir("/")


def _become(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
