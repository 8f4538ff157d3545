"""The machines of steps that failed, kept so that somebody can look into them.

    build/failed/NAME/          the machine, as a snapshot, with the step's root as it was left
    build/failures/NAME.json    what failed in it, and how it was run

No more than a few are kept, for some days: the oldest go.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ringzero.build.worker import Call, Worker, inside
from ringzero.digest import blake2b
from ringzero.errors import NotFoundError, RingzeroError, StateError
from ringzero.host.files import atomic_file
from ringzero.records import record
from ringzero.units import GIB
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store

# A machine takes what its guest has written to, and half of it is files: some 100 MiB each.
MOST, MOST_BYTES, MOST_SECONDS = 5, 4 * GIB, 7 * 86400


@record
class Failure:
    """A step that failed: what it was, how it ran (`Call`), and which of its machine it is."""

    instruction: str
    status: int
    number: int
    words: tuple[str, ...]
    env: dict[str, str]
    directory: str
    uid: int
    gids: tuple[int, ...]
    network: bool
    shell: tuple[str, ...]
    when: float

    @classmethod
    def of(
        cls, instruction: str, status: int, call: Call, number: int, shell: Sequence[str]
    ) -> Self:
        """Return the failure of a step that was run as `call` says."""
        return cls(
            *(instruction, status, number, call.words, dict(call.env), call.directory),
            *(call.uid, call.gids, call.network, tuple(shell), time.time()),
        )

    @property
    def name(self) -> str:
        """What it is called: the same step that fails the same way takes the place of this one."""
        text = json.dumps([self.instruction, self.number, self.words, self.env, self.directory])
        return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()

    @property
    def call(self) -> Call:
        """How it ran, without what was mounted for it."""
        return Call(self.words, self.env, self.directory, self.uid, self.gids, network=self.network)

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, **vars(self)}


class Failures:
    """Those below a cache's directory for builds."""

    def __init__(self, place: Path) -> None:
        self._place = place / "failures"
        self._machines = Store(place / "failed")

    def keep(self, worker: Worker, failure: Failure) -> str:
        """Keep the machine of a step that failed; return its name. Raises HostError, StateError."""
        self.remove(failure.name)
        worker.save(self._machines, failure.name)
        with atomic_file(self._place / f"{failure.name}.json") as file:
            file.write(json.dumps(vars(failure)).encode())
        self.tidy()
        return failure.name

    def all(self) -> list[Failure]:
        """Return those whose machines are there, the latest first."""
        found = [self._read(name) for name in self._machines.names()]
        return sorted((f for f in found if f is not None), key=lambda f: f.when, reverse=True)

    def find(self, name: str = "") -> Failure:
        """Return the one whose name begins so; "" is the latest. Raises NotFoundError."""
        failures = self.all()
        for failure in failures:
            if failure.name.startswith(name):
                return failure
        known = ", ".join(failure.name for failure in failures) or "none"
        raise NotFoundError(
            f"no failed step {name!r} is kept" if name else "no failed step is kept",
            hint=f"there are: {known}; the error of a build names its step",
        )

    def machine(self, failure: Failure) -> Machine:
        """Return the machine of a failure, to be started. Raises StateError, NotFoundError."""
        try:
            return self._machines.get(failure.name).restore()
        except StateError as fault:
            fault.hint = "build again: the step fails in a new machine"
            raise

    def words(self, failure: Failure, words: Sequence[str]) -> list[str]:
        """Return what runs `words` in the failed step's root, as its command was run."""
        return inside(failure.number, failure.call, words)

    def remove(self, name: str) -> None:
        """Remove one, where it is there."""
        with contextlib.suppress(RingzeroError):
            self._machines.remove(name)
        (self._place / f"{name}.json").unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove the oldest, beyond what is kept."""
        left, now = MOST_BYTES, time.time()
        for number, failure in enumerate(self.all()):
            left -= self._size(failure.name)
            # The one that was just kept is there in any case.
            if number and (number >= MOST or left < 0 or now - failure.when > MOST_SECONDS):
                self.remove(failure.name)

    def _size(self, name: str) -> int:
        return next((node.own for node in self._machines.tree() if node.snapshot.name == name), 0)

    def _read(self, name: str) -> Failure | None:
        try:
            value = json.loads((self._place / f"{name}.json").read_bytes())
            for member in ("words", "gids", "shell"):
                value[member] = tuple(value[member])
            return Failure(**value)
        except (OSError, ValueError, KeyError, TypeError):
            return None
