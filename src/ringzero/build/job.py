"""What the stages of one build share: its file, directory and options, the cache, who listens."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from ringzero.build import base as bases
from ringzero.build.base import Base
from ringzero.build.cache import BuildCache
from ringzero.build.cut import Cut
from ringzero.build.entries import Layer
from ringzero.build.origin import Context
from ringzero.build.stage import State
from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.faults import Fault, FaultError
from ringzero.build.vmfile.instructions import Instruction, Vmfile
from ringzero.build.vmfile.words import expand
from ringzero.build.worker import MEMORY
from ringzero.errors import ConfigError, RingzeroError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci.reference import Reference
from ringzero.records import field, record

T = TypeVar("T")
# What has no time of its own is of 1980: the earliest that zip files can tell.
EPOCH = 315_532_800


class Listener(Protocol):
    """Who hears how a build goes on, from several threads. Steps are numbered over all stages."""

    def begins(self, number: int, count: int, text: str) -> None:
        """A step begins."""

    def says(self, number: int, data: bytes) -> None:
        """A step's command writes something."""

    def ends(self, number: int, seconds: float, *, cached: bool) -> None:
        """A step has ended."""


@record
class Options:
    """What a build takes beside the Vmfile and its directory; `epoch` None is `EPOCH`.

    `jobs` stages are built at once; None: as many as there are CPUs.
    """

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    names: tuple[Reference, ...] = ()
    use_cache: bool = True
    network: bool = True
    memory: int = MEMORY
    cpus: int = 1
    jobs: int | None = None
    epoch: int | None = None
    # What `--mount=type=secret` finds, by its id.
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@record
class Built:
    """A stage that is done: its base, the layers above it, what it says of itself."""

    base: Base
    state: State
    chain: str
    layers: tuple[Layer, ...]


class Job:
    """One build. Its stages may be in several threads."""

    def __init__(
        self,
        file: Vmfile,
        context: Context,
        options: Options,
        *,
        cache: Path,
        builds: BuildCache,
        listener: Listener,
        progress: Progress = QUIET,
    ) -> None:
        self.file = file
        self.context = context
        self.options = options
        self.cache = cache
        self.builds = builds
        self.listener = listener
        self.progress = progress
        self.epoch = EPOCH if options.epoch is None else options.epoch
        target = options.target
        self.last = len(file.stages) - 1 if target is None else file.stage(target) or 0
        # The stages that the last one needs, each with those that it needs itself.
        self.needs: dict[int, set[int]] = {}
        self._plan(self.last)
        self.done: dict[int, Built] = {}
        self.count = sum(len(file.stages[i].steps) + 1 for i in self.needs)
        self._bases: dict[str, Base] = {}
        self._finding: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def jobs(self) -> int:
        """How many stages are built at once, at most."""
        wanted = self.options.jobs or len(os.sched_getaffinity(0))
        return min(wanted, len(self.needs))

    def first_step(self, index: int) -> int:
        """Return the number of a stage's first step, from 1 on."""
        return 1 + sum(len(self.file.stages[i].steps) + 1 for i in self.needs if i < index)

    def stage_called(self, name: str, before: int) -> int | None:
        """Return the index of a stage by name or number that stands before another."""
        found = self.file.stage(name)
        return found if found is not None and found < before else None

    def find(self, name: str, cut: Cut) -> Base:
        """Return an image that is no stage; one at a time looks for it."""
        with self._lock:
            lock = self._finding.setdefault(name, threading.Lock())
        with lock:
            if name not in self._bases:
                self._bases[name] = bases.find(
                    name, self.cache, self.builds, self.epoch, self.progress, cut
                )
            return self._bases[name]

    def global_arguments(self) -> dict[str, str]:
        """Return the ARGs before the first FROM, with what the user says of them."""
        found: dict[str, str] = {}
        for arg in self.file.arguments:
            for name, default in arg.names:
                if name in self.options.arguments:
                    found[name] = self.options.arguments[name]
                elif default is not None:
                    found[name] = expand(default, found.get, self.file.escape)
        return found

    def told(self, step: Instruction, work: Callable[[], T]) -> T:
        """Do something for a step; what goes wrong has its place in the file, with a caret."""
        try:
            return work()
        except FaultError as fault:
            shown = self._shown(step, fault.at, fault.width, fault.message)
            raise ConfigError([shown]) from fault
        except ConfigError:
            raise
        except RingzeroError as fault:
            # The words behind the keyword: which of them it is only the message knows.
            words = step.line.text.partition(" ")[2]
            at = len(step.line.text) - len(words.lstrip())
            fault.message = self._shown(step, at, len(words), fault.message)
            fault.args = (fault.message, *fault.args[1:])
            raise

    def _shown(self, step: Instruction, at: int, width: int, message: str) -> str:
        line, column = step.line.place(min(at, max(0, len(step.line.text) - 1)))
        return Fault(line, column, width, message).show(self.file.name, list(self.file.lines))

    def _plan(self, last: int) -> None:
        """Find the stages that a stage needs, itself included."""
        todo = [last]
        while todo:
            index = todo.pop()
            if index not in self.needs:
                named = (self.stage_called(name, index) for name in self._named(index))
                self.needs[index] = {i for i in named if i is not None}
                todo += self.needs[index]
        self.needs = dict(sorted(self.needs.items()))

    def _named(self, index: int) -> list[str]:
        """Return the names of stages and images that a stage uses."""
        stage = self.file.stages[index]
        names = [stage.begin.image.text]
        # What is wrong with it is told by the step itself.
        with contextlib.suppress(FaultError):
            names.append(expand(stage.begin.image, self.global_arguments().get, self.file.escape))
        for step in stage.steps:
            if isinstance(step, kinds.Copy) and step.stage is not None:
                names.append(step.stage.text)
            elif isinstance(step, kinds.Run):
                names += [mount.stage for mount in step.mounts if mount.stage]
        return names
