"""A stage's steps: what is known of them is taken over, the others are done, in a machine.

The machine is there only once a RUN must be done: it goes on from the snapshot that the last RUN
before left, or it boots the base.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ringzero.board.boot.kernel import MAX_KERNEL_SIZE, parse_kernel
from ringzero.build import addresses, copying, entries
from ringzero.build import base as bases
from ringzero.build.cache import key
from ringzero.build.copying import Placement
from ringzero.build.cut import Cut
from ringzero.build.entries import Layer
from ringzero.build.failures import Failure
from ringzero.build.job import Built, Job
from ringzero.build.mounts import Mounts
from ringzero.build.origin import Image, Origin, matches
from ringzero.build.stage import State
from ringzero.build.view import View
from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.instructions import Instruction
from ringzero.build.vmfile.words import Word, expand
from ringzero.build.worker import Call, Worker
from ringzero.errors import (
    BuildError,
    GuestImageError,
    InvalidValueError,
    MissingFileError,
    RingzeroError,
)
from ringzero.image import machinespec
from ringzero.image.oci.process import User, find_user
from ringzero.records import replace
from ringzero.units import format_size

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class StageRun:
    """A stage that runs; close it."""

    def __init__(
        self, job: Job, index: int, start: Built, arguments: Mapping[str, str], cut: Cut
    ) -> None:
        self._job = job
        self._index = index
        self._stage = job.file.stages[index]
        self._cut = cut
        self._base = start.base
        self._state = start.state
        self._chain = start.chain
        self._layers = list(start.layers)
        self._globals = arguments
        self._view: View | None = None
        self._viewed = 0
        self._worker: Worker | None = None
        # Of the step at hand, over all stages.
        self._number = 0
        # Whether its memory may hold a secret: then it is not written down.
        self._tainted = False
        # Whether another RUN follows the step at hand.
        self._goes_on = False
        # The last snapshot that the cache has of these steps: its name, and how many layers in.
        self._snapshot: tuple[str, int] | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> StageRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def run(self) -> Built:
        """Do all steps."""
        job, first = self._job, self._job.first_step(self._index) + 1
        for at, step in enumerate(self._stage.steps):
            self._goes_on = any(isinstance(s, kinds.Run) for s in self._stage.steps[at + 1 :])
            self._number = first + at
            self._cut.check()
            job.listener.begins(self._number, job.count, step.line.text)
            started = time.monotonic()
            cached, empty = job.told(step, lambda step=step: self._do(step))  # type: ignore[misc]
            self._state.note(step.line.text, bases.created(job.epoch), empty=empty)
            job.listener.ends(self._number, time.monotonic() - started, cached=cached)
        return Built(self._base, self._state, self._chain, tuple(self._layers))

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
            case kinds.Kernel():
                return self._kernel(self._state.text(step.source))
        raise InvalidValueError(f"{type(step).keyword} is not carried out")

    def _take_arguments(self, step: kinds.Arg) -> None:
        given = self._job.options.arguments
        for name, default in step.names:
            if name in given:
                self._state.arguments[name] = given[name]
            elif default is not None:
                self._state.arguments[name] = self._state.text(default)
            elif name in self._globals:
                self._state.arguments[name] = self._globals[name]

    # ---- COPY ---------------------------------------------------------------

    def _copy(self, step: kinds.Copy) -> bool:
        state, builds = self._state, self._job.builds
        with contextlib.ExitStack() as stack:
            origin = self._origin(step, stack)
            owner = state.text(step.owner) if step.owner else ""
            sources = [state.text(word) for word in step.sources]
            given = self._given(step, sources)
            placement = Placement(
                state.absolute(state.text(step.target)),
                None,
                copying.mode_of(state.text(step.mode)) if step.mode else None,
                _unpacks(step, sources),
                step.parents,
                tuple(state.text(word) for word in step.exclude),
            )
            # What a step makes of the same files on the same steps: the tree is not looked at.
            contents = copying.contents(origin, sources, given, placement, self._job.epoch)
            memo = key(self._chain, "COPIED", repr(placement), owner, *sources, "", *contents)
            layer = builds.find(memo)
            if layer is not None:
                return self._put(layer)
            view = self._current_view()
            if owner:
                placement = replace(placement, owner=copying.owner_of(owner, view))
            found = copying.plan(origin, sources, given, placement, view)
            return self._add(found, memo)

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
            entry = addresses.fetch(url, checksum, self._job.builds.downloads)
            found[url] = replace(entry, name=name.encode("utf-8", "surrogateescape"))
        return found

    def _origin(self, step: kinds.Copy, stack: contextlib.ExitStack) -> Origin:
        if step.stage is None:
            return self._job.context
        return self._called(self._state.text(step.stage), stack)

    def _mounted(self, name: str) -> Origin:
        """Return what a mount takes files from: the build's directory, or what is called so."""
        return self._called(name, self._closing) if name else self._job.context

    def _called(self, name: str, stack: contextlib.ExitStack) -> Origin:
        """Return the tree of a stage or image."""
        index = self._job.stage_called(name, self._index)
        if index is None:
            view = View(self._job.find(name, self._cut).image.root)
        else:
            built = self._job.done[index]
            view = View(built.base.image.root, [self._path(x) for x in built.layers])
        return Image(stack.enter_context(view))

    def _make_directory(self, path: str) -> tuple[bool, bool]:
        """Have a directory, by a layer of its own where it is missing."""
        memo = key(self._chain, "WORKDIR", path)
        layer = self._job.builds.find(memo)
        if layer is None:
            found = copying.directories(path, self._current_view())
            if found:
                return self._add(found, memo), False
            layer = self._written(())
            self._job.builds.keep(memo, layer)
        if layer.size == entries.EMPTY:
            return True, True
        return self._put(layer), False

    def _kernel(self, source: str) -> tuple[bool, bool]:
        """Have machines of the image boot a kernel: a file of it, or one of the build's directory.

        Return whether that was known, and whether it made no layer.
        """
        known, copied = True, not source.startswith("/")
        if copied:
            known, source = self._copied_kernel(source)
        memo = key(self._chain, "KERNEL", source)
        path = self._job.builds.path(memo)
        if path is None:
            path, known = self._checked_kernel(source), False
            self._job.builds.keep_path(memo, path)
        self._state.machine = replace(self._state.machine, kernel=path)
        return known, not copied

    def _copied_kernel(self, source: str) -> tuple[bool, str]:
        """Put a kernel of the build's directory into /boot; return whether it was, and its path."""
        context = self._job.context
        found = matches(context, source)
        if len(found) != 1:
            raise MissingFileError(
                f"{source!r} is {len(found)} files of the build's directory, and one is wanted",
                hint="a kernel of the image has a path from its root: KERNEL /boot/vmlinuz",
            )
        placement = Placement("/boot/", None, 0o644)
        contents = copying.contents(context, [source], {}, placement, self._job.epoch)
        memo = key(self._chain, "COPIED", repr(placement), source, *contents)
        layer = self._job.builds.find(memo)
        if layer is not None:
            known = self._put(layer)
        else:
            files = copying.plan(context, [source], {}, placement, self._current_view())
            known = self._add(files, memo)
        return known, "/boot/" + os.fsdecode(found[0]).rpartition("/")[2]

    def _checked_kernel(self, source: str) -> str:
        """Return the path of a kernel of the image, without links. Raises GuestImageError."""
        view = self._current_view()
        found = {view.resolve(path)[0] for path in matches(Image(view), source)}
        if not found:
            raise MissingFileError(
                f"there is no {source} in the image so far",
                hint="a RUN before installs it: apt-get install -y linux-image-cloud-amd64",
            )
        if len(found) > 1:
            names = ", ".join(sorted("/" + os.fsdecode(name) for name in found))
            raise InvalidValueError(f"{source} is several files: {names}", hint="name one of them")
        name = found.pop()
        path, node = "/" + os.fsdecode(name), view.find(name)
        if node is None or not stat.S_ISREG(node.mode) or not machinespec.is_path(path):
            raise InvalidValueError(f"{path} is no kernel's file")
        if node.size > MAX_KERNEL_SIZE:
            raise InvalidValueError(f"{path} is too large for a kernel: {format_size(node.size)}")
        try:
            parse_kernel(b"".join(view.content(node)))
        except GuestImageError as fault:
            raise GuestImageError(f"{path}: {fault.message}", hint=fault.hint) from fault
        return path

    def _add(self, found: Sequence[entries.Entry], memo: str) -> bool:
        """Put a layer of files of the host on top, and keep it; return whether it was known."""
        layer = self._written(found)
        known = self._put(layer)
        self._job.builds.keep(memo, layer)
        return known

    def _written(self, found: Sequence[entries.Entry]) -> Layer:
        # Times are no part of what is copied.
        return self._job.builds.add(lambda file: entries.write(found, file, self._job.epoch))

    def _put(self, layer: Layer) -> bool:
        """Put a layer of files of the host on top; return whether it was known."""
        step = key(self._chain, "COPY", layer.digest)
        known = self._job.builds.find(step) is not None
        self._take(step, layer, known=known)
        return known

    # ---- RUN ----------------------------------------------------------------

    def _run(self, step: kinds.Run) -> bool:
        job = self._job
        call = self._call(step)
        mounts = Mounts(step.mounts, self._current_view, job.builds, job.options.secrets)
        attachments, covered = mounts.plan(self._mounted)
        chain = key(
            *covered,
            *(self._chain, "RUN", *call.words, "", call.directory, repr(sorted(call.env.items()))),
            *(repr((call.uid, call.gids, call.network)),),
        )
        layer = job.builds.find(chain) if job.options.use_cache else None
        known = layer is not None
        if layer is None:
            worker = self._ready_worker()
            self._tainted |= any(mount.kind == "secret" for mount in step.mounts)
            call = replace(call, attachments=attachments, env={**call.env, **mounts.variables()})
            status = worker.run(call, lambda data: job.listener.says(self._number, data))
            if status:
                raise self._failed(step, call, status)
            view = self._current_view()
            layer = job.builds.add(
                lambda file: worker.take(view, file, job.epoch, goes_on=self._goes_on)
            )
        self._take(chain, layer, known=known)
        if known:
            name = job.builds.machine(chain)
            self._snapshot = (name, len(self._layers)) if name else self._snapshot
        else:
            self._save(chain)
        return known

    def _failed(self, step: kinds.Run, call: Call, status: int) -> BuildError:
        """Return the error of a RUN that failed; its machine is kept."""
        text, worker = step.line.text, self._worker
        hint = "the steps before are kept: mend the step and build again"
        self._cut.check()
        if worker is not None and not self._tainted:
            failure = Failure.of(text, status, call, worker.steps + 1, self._state.shell)
            # A full disk is no reason to say less of the step.
            with contextlib.suppress(RingzeroError):
                name = self._job.builds.failures.keep(worker, failure)
                hint = f"ringzero image debug {name}: a shell where it failed; {hint}"
        return BuildError(f"{text!r} ended with status {status}", status=status, hint=hint)

    def _call(self, step: kinds.Run) -> Call:
        state = self._state
        words = step.command.words or (*state.shell, script(step.command))
        user = self._user()
        env = {"PATH": _PATH, "HOME": user.home, **state.variables()}
        network = self._job.options.network and step.network != "none"
        return Call(words, env, state.workdir or "/", user.uid, user.gids, network)

    def _user(self) -> User:
        """Return who the image's user is: looked up once for each state of its files."""
        builds, name = self._job.builds, self._state.user
        step = key(self._chain, "USER", name)
        known = builds.user(step)
        if known is None:
            known = find_user(name, self._current_view().read)
            builds.keep_user(step, known)
        return known

    def _ready_worker(self) -> Worker:
        """Return the stage's machine, with all layers so far."""
        if self._worker is None:
            self._worker = self._resumed() or self._booted()
        for layer in self._layers[self._worker.steps :]:
            self._worker.put(self._path(layer))
        return self._worker

    def _booted(self) -> Worker:
        options = self._job.options
        worker = Worker.boot(self._base.files, memory=options.memory, cpus=options.cpus)
        self._keep_running(worker)
        worker.set_up()
        return worker

    def _keep_running(self, worker: Worker) -> None:
        """Have a machine until the stage ends, or the build is cut short."""
        self._closing.callback(worker.stop)
        self._cut.add(worker.stop)

    def _resumed(self) -> Worker | None:
        if self._snapshot is None:
            return None
        name, steps = self._snapshot
        # A damaged one, or of another engine: the base boots.
        with contextlib.suppress(RingzeroError):
            worker = Worker.resume(self._job.builds.machines, name, steps)
            self._keep_running(worker)
            return worker
        return None

    def _save(self, chain: str) -> None:
        """Keep the machine after a RUN that others follow: a build goes on there if they change.

        Behind the last one nothing is likelier to change than that one itself.
        """
        builds = self._job.builds
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
            self._job.builds.keep(chain, layer)

    def _path(self, layer: Layer) -> Path:
        return self._job.builds.layer(layer.digest)

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
