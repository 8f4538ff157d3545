"""Carrying a Vmfile out: its stages, several at the same time, and the image."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

from ringzero.build import base as bases
from ringzero.build import parts
from ringzero.build.cache import BuildCache, key
from ringzero.build.cut import Cut
from ringzero.build.job import Built, Job, Listener, Options
from ringzero.build.origin import Context
from ringzero.build.stage import PREDEFINED, State
from ringzero.build.stagerun import StageRun
from ringzero.build.vmfile import instructions as kinds
from ringzero.build.vmfile.instructions import Vmfile
from ringzero.build.vmfile.words import expand
from ringzero.errors import ConfigError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.made import Made, put
from ringzero.image.oci.manifest import host_architecture
from ringzero.image.oci.store import StoredImage
from ringzero.records import replace


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
        job = Job(
            *(file, context, options),
            cache=cache,
            builds=builds,
            listener=listener,
            progress=progress,
        )
        _stages(job)
        return _image(job, job.done[job.last])


def _check(file: Vmfile, options: Options) -> None:
    faults = list[str]()
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


def _stages(job: Job) -> None:
    """Build all stages that are wanted. Raises what the first one raises that fails."""
    cut = Cut()
    if job.jobs < 2:
        for index in job.needs:
            job.done[index] = _stage(job, index, cut)
        return
    waiting = dict(job.needs)
    with futures.ThreadPoolExecutor(job.jobs, "stage") as pool, _cutting(cut):
        running: dict[futures.Future[Built], int] = {}
        while waiting or running:
            for index in [i for i, needed in waiting.items() if needed <= job.done.keys()]:
                running[pool.submit(_stage, job, index, cut)] = index
                del waiting[index]
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for stage in sorted(done, key=running.__getitem__):
                job.done[running.pop(stage)] = stage.result()


@contextlib.contextmanager
def _cutting(cut: Cut) -> Iterator[None]:
    """End all stages where the block fails, or the user ends it."""
    try:
        yield
    except BaseException:
        cut.make()
        raise


def _stage(job: Job, index: int, cut: Cut) -> Built:
    stage, escape = job.file.stages[index], job.file.escape
    cut.check()
    arguments = job.global_arguments()
    name = job.told(stage.begin, lambda: expand(stage.begin.image, arguments.get, escape))
    number, started = job.first_step(index), time.monotonic()
    job.listener.begins(number, job.count, stage.begin.line.text)
    source = job.stage_called(name, index)
    if source is not None:
        before = job.done[source]
        start = Built(before.base, before.state.copy(), before.chain, before.layers)
    else:
        base = job.told(stage.begin, lambda: job.find(name, cut))
        state = State.of(base.config, escape)
        start = Built(base, state, key("FROM", base.files.digest, str(job.epoch)), ())
    job.listener.ends(number, time.monotonic() - started, cached=False)
    with StageRun(job, index, start, arguments, cut) as running:
        return running.run()


def _image(job: Job, built: Built) -> StoredImage:
    """Return the image of a stage from the store, with its names."""
    base, layers = built.base, built.layers
    architecture = host_architecture()
    if built.state.machine.snapshot and built.state.machine.disks:
        raise ConfigError(
            ["SNAPSHOT and DISK do not go together: each machine's disk is its own, and memory in "
             "which one is mounted fits no other"]
        )  # fmt: skip
    blobs = Blobs(job.cache)
    # What is packed now is no image's before it is put there.
    with blobs.in_use(job.progress):
        paths = [(layer, job.builds.layer(layer.digest)) for layer in layers]
        packed = parts.pack(
            paths, len(base.layers), builds=job.builds, blobs=blobs, progress=job.progress
        )
        own = [part for layer in packed for part in layer]
        state = replace(built.state, history=parts.told(built.state.history, packed))
        diff_ids = [*base.diff_ids, *(part.diff_id for part in own)]
        config = state.document(architecture, diff_ids, bases.created(job.epoch))
        blobs_of = (*base.layers, *(part.blob for part in own))
        return _put(job, Made(config, tuple((blob, None) for blob in blobs_of)), state)


def _put(job: Job, made: Made, state: State) -> StoredImage:
    """Bring an image into the store, with its names and its memory."""
    if state.machine.snapshot:
        from ringzero.build import memory

        # It has its names when all of it is there.
        image = put(made, cache=job.cache, progress=job.progress)
        memory.keep(
            image,
            cache=job.cache,
            secrets=job.options.secrets,
            progress=job.progress,
        )
    return put(made, cache=job.cache, names=job.options.names, progress=job.progress)
