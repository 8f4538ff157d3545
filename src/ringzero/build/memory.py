"""SNAPSHOT: the memory layer of an image that was built.

A machine of the image boots, as `ringzero run` would have it, and is written down when its services
are ready: a template, which is kept with the image. It knows nothing of the build.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ringzero.board.contract import BOARDS
from ringzero.config.machine import MachineConfig
from ringzero.engine import select
from ringzero.engine.contract import Engine
from ringzero.errors import BuildError, NotFoundError, RingzeroError
from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci import boot as images
from ringzero.image.oci import memory as layers
from ringzero.image.oci.blobs import Blobs, digest_of
from ringzero.image.oci.boot import ContainerFiles
from ringzero.image.oci.made import pour
from ringzero.image.oci.manifest import OCI_MANIFEST, Descriptor
from ringzero.image.oci.memory import MemoryLayer
from ringzero.image.oci.store import StoredImage
from ringzero.settings import ENGINE
from ringzero.vm.boot import with_network, with_root, with_services
from ringzero.vm.saved import making, shipped, templates
from ringzero.vm.saved.templates import Key, Templates

# How long another process that makes a template is waited for, in seconds.
_PATIENCE = 600.0
_LOOK_AGAIN = 0.2


def keep(
    image: StoredImage,
    *,
    cache: Path,
    secrets: Mapping[str, bytes],
    progress: Progress = QUIET,
) -> MemoryLayer:
    """Have the memory layer of an image in the store; one that is there and fits stays.

    Raises BuildError where services do not become ready, or where a secret of the build is in the
    memory; what booting raises.
    """
    blobs = Blobs(cache)
    with blobs.in_use(progress):
        config = _description(images.files("image", image, progress=progress))
        architecture = BOARDS.get(config.board).architecture
        engine = select.choose(config.engine, architecture)
        engine.prepare(progress, architecture, config.cpu or architecture.default_model)
        key = templates.key_of(config, engine)
        if isinstance(key, str):
            raise BuildError(f"SNAPSHOT: the memory of this image cannot be kept: {key}")
        place = image.root.parent
        found = layers.find(place, blobs, image.digest)
        if found is not None and blobs.read(found.binding.digest) == shipped.bound(key):
            return found
        with progress.step("keeping the memory of its services"):
            store = Templates()
            _make(config, engine, key, store)
            _search(store, key, secrets)
            layer = _pack(image, store, key, blobs, cache)
        layers.keep(place, layer)
    return layer


def _description(files: ContainerFiles) -> MachineConfig:
    """Return what `ringzero run` makes of an image and no flags."""
    spec = files.image.machine
    asked = {"memory": spec.memory, "cpus": spec.cpus}
    config = MachineConfig.create(
        **with_network({"name": files.name, "engine": ENGINE.get()}),
        **{name: value for name, value in asked.items() if value is not None},
        kernel=files.kernel,
        initrd=files.initrd,
        command_line=files.command_line,
        agent=True,
    )
    return with_services(with_root(config, files), files)


def _make(config: MachineConfig, engine: Engine, key: Key, store: Templates) -> None:
    """Have the template in the store; one at a time is made."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            made = making.make(config, engine, store)
        except RingzeroError as fault:
            raise BuildError(
                f"SNAPSHOT: the memory of this image cannot be kept: {fault.message}",
                hint="`ringzero run IMAGE` boots it, and shows what its services say",
            ) from fault
        try:
            store.take(key).close()
            return
        except NotFoundError:
            if made or time.monotonic() > end:
                raise
        time.sleep(_LOOK_AGAIN)


def _search(store: Templates, key: Key, secrets: Mapping[str, bytes]) -> None:
    """Raise BuildError where a secret of the build is in the memory."""
    template = store.take(key)
    try:
        for name, secret in secrets.items():
            if template.holds(secret.strip()):
                store.remove(key.name)
                raise BuildError(
                    f"SNAPSHOT: the memory holds the secret {name!r}: no memory layer is kept",
                    hint="a RUN has written it into a file that a service reads",
                )
    finally:
        template.close()


def _pack(image: StoredImage, store: Templates, key: Key, blobs: Blobs, cache: Path) -> MemoryLayer:
    with tempfile.TemporaryDirectory(prefix="memory-", dir=cache) as work:
        binding, state, pages = shipped.take_apart(store, key, Path(work))
        with pages.open("rb") as file:
            digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        whole = Descriptor(layers.PAGES, digest, pages.stat().st_size)
        blobs.fetch(whole, lambda sink: pour(pages, sink))
    for data in (binding, state):
        blobs.put(data, digest_of(data))
    subject = Descriptor(OCI_MANIFEST, image.digest, len(blobs.read(image.digest)))
    manifest = layers.document(
        subject,
        Descriptor(layers.BINDING, digest_of(binding), len(binding)),
        Descriptor(layers.STATE, digest_of(state), len(state)),
        whole,
    )
    blobs.put(manifest, digest_of(manifest))
    return layers.read(manifest, image.digest)
