"""Carrying a Vmfile out: stages and their steps, what is cached of them, and the image.

A step whose key is known is not done again. The machine of a stage is there only once a RUN must
be done: it goes on from the snapshot that the last RUN before left, or it boots the base.
"""

from __future__ import annotations

import contextlib
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from ringzero.build import addresses, copying, entries
from ringzero.build import base as bases
from ringzero.build.base import Base
from ringzero.build.cache import BuildCache, key
from ringzero.build.copying import Placement
from ringzero.build.entries import Layer
from ringzero.build.mounts import Mounts
from ringzero.build.origin import Context, Image, Origin
from ringzero.build.stage import PREDEFINED, State
from ringzero.build.view import View
from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.faults import Fault, FaultError
from ringzero.build.vmfile.instructions import Instruction, Stage, Vmfile
from ringzero.build.vmfile.words import Word, expand
from ringzero.build.worker import MEMORY, Call, Worker
from ringzero.errors import (
    BuildError,
    ConfigError,
    InvalidValueError,
    RingzeroError,
)
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci.made import Made, put
from ringzero.image.oci.manifest import ARCHITECTURES, Descriptor
from ringzero.image.oci.process import User, find_user
from ringzero.image.oci.reference import Reference
from ringzero.image.oci.store import StoredImage
from ringzero.records import field, record, replace

T = TypeVar("T")
# What has no time of its own is of 1980: the earliest that zip files can tell.
EPOCH = 315_532_800
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Those that are read, and not carried out yet.
_OWED = {
    "KERNEL": "images boot the default guest's kernel",
    "DISK": "give the disk to the machine: ringzero run --disk",
}


class Listener(Protocol):
    """Who hears how a build goes on. Steps are numbered over all stages."""

    def begins(self, number: int, count: int, text: str) -> None:
        """A step begins."""

    def says(self, data: bytes) -> None:
        """A step's command writes something."""

    def ends(self, number: int, seconds: float, *, cached: bool) -> None:
        """A step has ended."""


@record
class Options:
    """What a build takes beside the Vmfile and its directory; `epoch` None is `EPOCH`."""

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    names: tuple[Reference, ...] = ()
    use_cache: bool = True
    network: bool = True
    memory: int = MEMORY
    cpus: int = 1
    epoch: int | None = None
    # What `--mount=type=secret` finds, by its id.
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def build(
    file: Vmfile,
    context: Context,
    options: Options,
    *,
    cache: Path,
    listener: Listener,
    progress: Progress = QUIET,
) -> StoredImage:
    """Build the image that `file` describes, and return it from the store.

    Raises ConfigError for what cannot be carried out, BuildError for a RUN that fails, and
    what finding images, copying and machines raise.
    """
    _check(file, options)
    builds = BuildCache(cache)
    with builds.in_use(progress):
        builder = _Builder(file, context, options, cache, builds, listener, progress)
        return builder.result()


def _check(file: Vmfile, options: Options) -> None:
    faults = [
        f"{file.name}:{step.line.place(0)[0]}: {type(step).keyword} is not carried out yet; "
        f"{_OWED[type(step).keyword]}"
        for stage in file.stages
        for step in stage.steps
        if type(step).keyword in _OWED
    ]
    if options.target is not None and file.stage(options.target) is None:
        names = ", ".join(stage.name for stage in file.stages if stage.name)
        faults.append(f"no stage is called {options.target!r}; those with names: {names or 'none'}")
    declared = {
        name
        for arg in (*file.arguments, *(s for st in file.stages for s in st.steps))
        if isinstance(arg, kinds.Arg)
        for name, _ in arg.names
    }
    faults += [
        f"--build-arg {name}: no ARG of the file takes it"
        for name in options.arguments
        if name not in declared | PREDEFINED
    ]
    if faults:
        raise ConfigError(faults)


class _Built:
    """A stage that is done: its base, the layers above it, what it says of itself."""

    def __init__(self, base: Base, state: State, chain: str, layers: tuple[Layer, ...]) -> None:
        self.base = base
        self.state = state
        self.chain = chain
        self.layers = layers


class _Builder:
    def __init__(
        self,
        file: Vmfile,
        context: Context,
        options: Options,
        cache: Path,
        builds: BuildCache,
        listener: Listener,
        progress: Progress,
    ) -> None:
        self.file = file
        self.context = context
        self.options = options
        self.cache = cache
        self.builds = builds
        self.listener = listener
        self.progress = progress
        self.epoch = EPOCH if options.epoch is None else options.epoch
        self._done: dict[int, _Built] = {}
        target = options.target
        self._last = len(file.stages) - 1 if target is None else file.stage(target) or 0
        self._wanted = self._needed(self._last)
        self.count = sum(len(file.stages[i].steps) + 1 for i in self._wanted)
        self.number = 0

    def result(self) -> StoredImage:
        """Return the image of the last stage that is wanted."""
        for index in self._wanted:
            self._done[index] = self._stage(index)
        built = self._done[self._last]
        base, layers = built.base, built.layers
        architecture = ARCHITECTURES.get(platform.machine(), platform.machine())
        diff_ids = [*base.diff_ids, *(layer.digest for layer in layers)]
        config = built.state.document(architecture, diff_ids, bases.created(self.epoch))
        parts: list[tuple[Descriptor, Path | None]] = [(layer, None) for layer in base.layers]
        parts += [(bases.layer_of(x), self.builds.layer(x.digest)) for x in layers]
        made = Made(config, tuple(parts))
        if built.state.machine.snapshot:
            from ringzero.build import memory

            # It has its names when all of it is there.
            image = put(made, cache=self.cache, progress=self.progress)
            memory.keep(
                image,
                cache=self.cache,
                secrets=self.options.secrets,
                progress=self.progress,
            )
        return put(made, cache=self.cache, names=self.options.names, progress=self.progress)

    def _needed(self, last: int) -> list[int]:
        """Return the stages that a stage needs, itself included, in their order."""
        wanted, todo = set[int](), [last]
        while todo:
            index = todo.pop()
            if index in wanted:
                continue
            wanted.add(index)
            stage = self.file.stages[index]
            names = [stage.begin.image.text]
            names += [
                step.stage.text
                for step in stage.steps
                if isinstance(step, kinds.Copy) and step.stage is not None
            ]
            names += [
                mount.stage for step in stage.steps if isinstance(step, kinds.Run)
                for mount in step.mounts if mount.stage
            ]  # fmt: skip
            todo += [i for name in names if (i := self.stage_called(name, index)) is not None]
        return sorted(wanted)

    def stage_called(self, name: str, before: int) -> int | None:
        """Return the index of a stage by name or number that stands before another."""
        found = self.file.stage(name)
        return found if found is not None and found < before else None

    def done(self, index: int) -> _Built:
        """Return a stage that is done."""
        return self._done[index]

    def find(self, name: str) -> Base:
        """Return an image that is no stage."""
        return bases.find(name, self.cache, self.builds, self.epoch, self.progress)

    def _stage(self, index: int) -> _Built:
        stage = self.file.stages[index]
        arguments = self._global_arguments()
        escape = self.file.escape
        name = _told(
            self.file, stage.begin, lambda: expand(stage.begin.image, arguments.get, escape)
        )
        self.begin(stage.begin)
        started = time.monotonic()
        source = self.stage_called(name, index)
        if source is not None:
            before = self._done[source]
            start = _Built(before.base, before.state.copy(), before.chain, before.layers)
        else:
            base = _told(self.file, stage.begin, lambda: self.find(name))
            state = State.of(base.config, escape)
            start = _Built(base, state, key("FROM", base.files.digest, str(self.epoch)), ())
        self.listener.ends(self.number, time.monotonic() - started, cached=False)
        with _Stage(self, index, stage, start, arguments) as running:
            return running.run()

    def begin(self, step: Instruction) -> None:
        """Tell of a step."""
        self.number += 1
        self.listener.begins(self.number, self.count, step.line.text)

    def _global_arguments(self) -> dict[str, str]:
        """Return the ARGs before the first FROM, with what the user says of them."""
        found: dict[str, str] = {}
        for arg in self.file.arguments:
            for name, default in arg.names:
                if name in self.options.arguments:
                    found[name] = self.options.arguments[name]
                elif default is not None:
                    found[name] = expand(default, found.get, self.file.escape)
        return found


class _Stage:
    """A stage that runs."""

    def __init__(
        self,
        builder: _Builder,
        index: int,
        stage: Stage,
        start: _Built,
        arguments: Mapping[str, str],
    ) -> None:
        self._builder = builder
        self._index = index
        self._stage = stage
        self._base = start.base
        self._state = start.state
        self._chain = start.chain
        self._layers = list(start.layers)
        self._globals = arguments
        self._view: View | None = None
        self._viewed = 0
        self._worker: Worker | None = None
        # Whether its memory may hold a secret: then it is not written down.
        self._tainted = False
        # Whether another RUN follows the step at hand.
        self._goes_on = False
        # The last snapshot that the cache has of these steps: its name, and how many layers in.
        self._snapshot: tuple[str, int] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def run(self) -> _Built:
        """Do all steps."""
        builder = self._builder
        for number, step in enumerate(self._stage.steps):
            self._goes_on = any(isinstance(s, kinds.Run) for s in self._stage.steps[number + 1 :])
            builder.begin(step)
            started = time.monotonic()
            cached, empty = _told(builder.file, step, lambda step=step: self._do(step))  # type: ignore[misc]
            created = bases.created(builder.epoch)
            self._state.note(step.line.text, created, empty=empty)
            builder.listener.ends(builder.number, time.monotonic() - started, cached=cached)
        return _Built(self._base, self._state, self._chain, tuple(self._layers))

    def _do(self, step: Instruction) -> tuple[bool, bool]:
        """Do a step; return whether it was known, and whether it made no layer."""
        if self._state.take(step):
            return True, True
        match step:
            case kinds.Arg():
                self._take_arguments(step)
                return True, True
            case kinds.Workdir():
                self._state.workdir = self._state.absolute(self._state.text(step.path)).rstrip("/")
                self._state.workdir = self._state.workdir or "/"
                return self._make_directory(self._state.workdir)
            case kinds.Run():
                return self._run(step), False
            case kinds.Copy():
                return self._copy(step), False
        raise InvalidValueError(f"{type(step).keyword} is not carried out")

    def _take_arguments(self, step: kinds.Arg) -> None:
        given = self._builder.options.arguments
        for name, default in step.names:
            if name in given:
                self._state.arguments[name] = given[name]
            elif default is not None:
                self._state.arguments[name] = self._state.text(default)
            elif name in self._globals:
                self._state.arguments[name] = self._globals[name]

    # ---- COPY ---------------------------------------------------------------

    def _copy(self, step: kinds.Copy) -> bool:
        state, view = self._state, self._current_view()
        with contextlib.ExitStack() as stack:
            origin = self._origin(step, stack)
            owner = copying.owner_of(state.text(step.owner), view) if step.owner else None
            sources = [state.text(word) for word in step.sources]
            given = self._given(step, sources)
            placement = Placement(
                state.absolute(state.text(step.target)),
                owner,
                copying.mode_of(state.text(step.mode)) if step.mode else None,
                _unpacks(step, sources),
                step.parents,
                tuple(state.text(word) for word in step.exclude),
            )
            return self._add(copying.plan(origin, sources, given, placement, view))

    def _given(self, step: kinds.Copy, sources: Sequence[str]) -> dict[str, entries.Entry]:
        """Return the files of a step that do not lie in a directory, by source."""
        state = self._state
        found = {
            document.name: copying.document(
                document.name, _document(document.content, document.expands, state)
            )
            for document in step.documents
        }
        if not isinstance(step, kinds.Add):
            return found
        checksum = addresses.checked(state.text(step.checksum)) if step.checksum else ""
        remote = [source for source in sources if addresses.is_address(source)]
        if checksum and (len(remote) != 1 or len(sources) != 1):
            raise InvalidValueError("--checksum is of one address, and of nothing else")
        for url in remote:
            name = addresses.name_of(url)
            if not name and state.text(step.target).endswith("/"):
                raise InvalidValueError(
                    f"the address {url} names no file", hint="write ADD URL /DIRECTORY/NAME"
                )
            entry = addresses.fetch(url, checksum, self._builder.builds.downloads)
            found[url] = replace(entry, name=name.encode("utf-8", "surrogateescape"))
        return found

    def _origin(self, step: kinds.Copy, stack: contextlib.ExitStack) -> Origin:
        if step.stage is None:
            return self._builder.context
        return self._called(self._state.text(step.stage), stack)

    def _mounted(self, name: str) -> Origin:
        """Return what a mount takes files from: the build's directory, or what is called so."""
        return self._called(name, self._closing) if name else self._builder.context

    def _called(self, name: str, stack: contextlib.ExitStack) -> Origin:
        """Return the tree of a stage or image."""
        index = self._builder.stage_called(name, self._index)
        if index is None:
            view = View(self._builder.find(name).image.root)
        else:
            built = self._builder.done(index)
            view = View(built.base.image.root, [self._path(x) for x in built.layers])
        return Image(stack.enter_context(view))

    def _make_directory(self, path: str) -> tuple[bool, bool]:
        """Have a directory, by a layer of its own where it is missing."""
        view = self._current_view()
        _, node = view.resolve(path.encode("utf-8", "surrogateescape"))
        if node is not None and node.children is not None:
            return True, True
        return self._add(copying.directories(path, view)), False

    def _add(self, found: Sequence[entries.Entry]) -> bool:
        """Put a layer of files of the host on top; return whether it was known."""
        builds = self._builder.builds
        # Times are no part of what is copied.
        layer = builds.add(lambda file: entries.write(found, file, self._builder.epoch))
        step = key(self._chain, "COPY", layer.digest)
        known = builds.find(step) is not None
        self._take(step, layer, known=known)
        return known

    # ---- RUN ----------------------------------------------------------------

    def _run(self, step: kinds.Run) -> bool:
        builder = self._builder
        call = self._call(step)
        mounts = Mounts(step.mounts, self._current_view, builder.builds, builder.options.secrets)
        attachments, covered = mounts.plan(self._mounted)
        chain = key(
            *covered,
            *(self._chain, "RUN", *call.words, "", call.directory, repr(sorted(call.env.items()))),
            *(repr((call.uid, call.gids, call.network)),),
        )
        layer = builder.builds.find(chain) if builder.options.use_cache else None
        known = layer is not None
        if layer is None:
            worker = self._ready_worker()
            self._tainted |= any(mount.kind == "secret" for mount in step.mounts)
            call = replace(call, attachments=attachments, env={**call.env, **mounts.variables()})
            status = worker.run(call, builder.listener.says)
            if status:
                raise BuildError(
                    f"{step.line.text!r} ended with status {status}",
                    status=status,
                    hint="the steps before are kept: mend the step and build again",
                )
            view = self._current_view()
            layer = builder.builds.add(lambda file: worker.take(view, file, builder.epoch))
        self._take(chain, layer, known=known)
        if known:
            name = builder.builds.machine(chain)
            self._snapshot = (name, len(self._layers)) if name else self._snapshot
        else:
            self._save(chain)
        return known

    def _call(self, step: kinds.Run) -> Call:
        state = self._state
        words = step.command.words or (*state.shell, script(step.command))
        user = self._user()
        env = {"PATH": _PATH, "HOME": user.home, **state.variables()}
        network = self._builder.options.network and step.network != "none"
        return Call(words, env, state.workdir or "/", user.uid, user.gids, network)

    def _user(self) -> User:
        """Return who the image's user is: looked up once for each state of its files."""
        builds, name = self._builder.builds, self._state.user
        step = key(self._chain, "USER", name)
        known = builds.user(step)
        if known is None:
            known = find_user(name, self._current_view().read)
            builds.keep_user(step, known)
        return known

    def _ready_worker(self) -> Worker:
        """Return the stage's machine, with all layers so far."""
        builder = self._builder
        if self._worker is None:
            self._worker = self._resumed() or Worker.boot(
                self._base.files, memory=builder.options.memory, cpus=builder.options.cpus
            )
            self._closing.callback(self._worker.stop)
        for layer in self._layers[self._worker.steps :]:
            self._worker.put(self._path(layer))
        return self._worker

    def _resumed(self) -> Worker | None:
        if self._snapshot is None:
            return None
        name, steps = self._snapshot
        # A damaged one, or of another engine: the base boots.
        with contextlib.suppress(RingzeroError):
            return Worker.resume(self._builder.builds.machines, name, steps)
        return None

    def _save(self, chain: str) -> None:
        """Keep the machine after a RUN that others follow: a build goes on there if they change.

        Behind the last one nothing is likelier to change than that one itself.
        """
        builds = self._builder.builds
        wanted = self._goes_on and self._worker is not None and not self._tainted
        if wanted and self._worker is not None and builds.machine(chain) is None:
            # Without it the next build boots; a full disk is told by the layers.
            with contextlib.suppress(RingzeroError):
                self._worker.save(builds.machines, builds.snapshot(chain))

    # ---- layers -------------------------------------------------------------

    def _take(self, chain: str, layer: Layer, *, known: bool) -> None:
        """Put a layer on top. A new one is kept once it is seen to be sound."""
        self._chain = chain
        self._layers.append(layer)
        if not known:
            self._current_view()
            self._builder.builds.keep(chain, layer)

    def _path(self, layer: Layer) -> Path:
        return self._builder.builds.layer(layer.digest)

    def _current_view(self) -> View:
        """Return what the image holds now."""
        if self._view is None:
            self._view = self._closing.enter_context(View(self._base.image.root))
        for layer in self._layers[self._viewed :]:
            self._view.apply(self._path(layer))
        self._viewed = len(self._layers)
        return self._view


def script(command: kinds.Command) -> str:
    """Return a RUN's text for the shell, its here-documents behind it.

    One that is nothing but a here-document is a script, which may name its interpreter.
    """
    if not command.documents:
        return command.text
    first = command.documents[0]
    name = command.text.strip().lstrip("<-").strip("'\"")
    if len(command.documents) > 1 or name != first.name:
        return "\n".join([command.text, *(f"{d.content}{d.name}" for d in command.documents)])
    if not first.content.startswith("#!"):
        return first.content
    return (
        f"f=$(mktemp) && printf %s {shlex.quote(first.content)} >$f && chmod +x $f && "
        "{ $f; s=$?; rm -f $f; exit $s; }"
    )


def _document(text: str, expands: bool, state: State) -> bytes:
    """Return a here-document's bytes; in one whose name is not quoted variables are replaced."""
    if expands:
        # Quotes are no quotes in it.
        quoted = "".join(state.escape + c if c in "\"'" else c for c in text)
        text = expand(Word(quoted, 0), state.lookup, state.escape)
    return text.encode("utf-8", "surrogateescape")


def _unpacks(step: kinds.Copy, sources: Sequence[str]) -> bool:
    """Whether archives are unpacked: files are, what is fetched only where that is asked for."""
    if not isinstance(step, kinds.Add):
        return False
    return step.unpack is True or (
        step.unpack is None and not any(map(addresses.is_address, sources))
    )


def _told(file: Vmfile, step: Instruction, work: Callable[[], T]) -> T:
    """Do something for a step; what goes wrong has its place in the file, with a caret."""
    try:
        return work()
    except FaultError as fault:
        raise ConfigError([_shown(file, step, fault.at, fault.width, fault.message)]) from fault
    except ConfigError:
        raise
    except RingzeroError as fault:
        # The words behind the keyword: which of them it is only the message knows.
        words = step.line.text.partition(" ")[2]
        at = len(step.line.text) - len(words.lstrip())
        fault.message = _shown(file, step, at, len(words), fault.message)
        fault.args = (fault.message, *fault.args[1:])
        raise


def _shown(file: Vmfile, step: Instruction, at: int, width: int, message: str) -> str:
    line, column = step.line.place(min(at, max(0, len(step.line.text) - 1)))
    return Fault(line, column, width, message).show(file.name, list(file.lines))
