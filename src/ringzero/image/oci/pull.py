"""Bringing an image into the store: manifest, configuration, layers, root file system."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ringzero.errors import GuestImageError, RingzeroError
from ringzero.host.files import atomic_directory, locked, require_space
from ringzero.host.progress import QUIET, Progress, Reported
from ringzero.image.oci import manifest as documents
from ringzero.image.oci import memory
from ringzero.image.oci.blobs import Blobs, Follower, check_digest, digest_of
from ringzero.image.oci.certificates import Trust
from ringzero.image.oci.local import Source, open_local
from ringzero.image.oci.manifest import (
    INDEXES,
    Descriptor,
    ImageConfig,
    Manifest,
    host_architecture,
)
from ringzero.image.oci.reference import Local, Reference
from ringzero.image.oci.signing import admission, kept, policy
from ringzero.image.oci.signing.document import Signature
from ringzero.image.oci.signing.keys import VerifyingKey, load_public
from ringzero.image.oci.store import Store, StoredImage
from ringzero.image.oci.unpacking import THREADS, StoppedError, Unpacking
from ringzero.units import format_size

# An index may name an index; nobody nests them deeper.
_MAX_INDEXES = 4


def pull(
    name: Reference | Local,
    *,
    cache: Path,
    progress: Progress = QUIET,
    architecture: str | None = None,
    trust: Trust | None = None,
    keys: Sequence[Path] = (),
    opened: Callable[[Callable[[], object]], object] = lambda close: None,
) -> StoredImage:
    """Bring the image called `name` into the store, whatever was there by this name.

    `architecture` is Go's name of one; None is this host's. `trust` is how the registry's
    certificate is checked. One of the public keys in the files `keys` has to have signed it, and
    one of those that the user's policy names. `opened` is given what ends the pull with an error,
    from any thread. Raises NotFoundError, HostError, GuestImageError, InvalidValueError, and
    SignatureError before anything is stored.
    """
    demands = [found for found in (keys, policy.required(name)) if found]
    store, blobs = Store(cache), Blobs(cache)
    wanted = architecture or host_architecture()
    with blobs.in_use(progress), contextlib.closing(_open(name, trust)) as source:
        opened(source.close)
        read = _documents(name, source, wanted)
        signed = _signed(name, source, [found for found, _ in read], demands)
        digest, data = read[-1]
        manifest = documents.manifest(documents.document(data, "the image's manifest"))
        blobs.put(data, digest)
        _fetch(name, source, blobs, [manifest.config], progress)
        config = documents.image_config(blobs.read(manifest.config.digest))
        if config.os not in ("", "linux"):
            raise GuestImageError(f"{name} is an image for {config.os}, not for Linux")
        if config.architecture not in ("", wanted):
            raise GuestImageError(f"{name} is an image for {config.architecture}, not for {wanted}")
        fetch = partial(_fetch, name, source, blobs, manifest.layers, progress)
        image = unpacked(store, blobs, digest, manifest, config, fetch, progress)
        if config.machine.snapshot:
            # Without it the image boots, and says so.
            with contextlib.suppress(RingzeroError):
                _fetch_memory(name, source, image, blobs, progress)
        if ours := [signature for signature, _ in signed if signature.digest == digest]:
            kept.add(image, ours)
        if signed:
            admission.note_keys(image, [key for _, key in signed])
    with store.lock(progress):
        store.set_name(name, digest)
    return store.named(name) or image


def _fetch_memory(
    name: Reference | Local, source: Source, image: StoredImage, blobs: Blobs, progress: Progress
) -> None:
    """Have an image's memory layer in the store, where there is one."""
    data = source.memory(image.digest)
    if data is None:
        return
    layer = memory.read(data, image.digest)
    _fetch(name, source, blobs, layer.blobs, progress)
    blobs.put(data, layer.manifest.digest)
    memory.keep(image.root.parent, layer)


def _open(name: Reference | Local, trust: Trust | None) -> Source:
    if isinstance(name, Local):
        return open_local(name)
    from ringzero.image.oci.registry import Registry

    return Registry(name, trust)


def _documents(
    name: Reference | Local, source: Source, architecture: str
) -> list[tuple[str, bytes]]:
    """Return what leads to the manifest for `architecture`, that last, each with its digest."""
    target = name.target if isinstance(name, Reference) else ""
    expected = name.digest if isinstance(name, Reference) else None
    found = []
    for _ in range(_MAX_INDEXES):
        data, told = source.manifest(target)
        if expected is not None:
            # Of the algorithm that was asked for.
            check_digest(data, expected)
        found.append((expected or digest_of(data), data))
        value = documents.document(data, "the image's manifest")
        if documents.media_type(value, told) not in INDEXES:
            return found
        chosen = documents.choose(documents.index(value), architecture)
        target = expected = chosen.digest
    raise GuestImageError("indexes of the image lead to each other without an end")


def _signed(
    name: Reference | Local,
    source: Source,
    digests: Sequence[str],
    wanted: Sequence[Sequence[Path]],
) -> list[tuple[Signature, VerifyingKey]]:
    """Return signatures by which an image is what one of each of several keys has signed, and it.

    What is signed is the first of `digests`, which may be an index, or the last, its manifest for
    one platform. Raises SignatureError.
    """
    if not wanted:
        return []
    from ringzero.image.oci.registry import Registry
    from ringzero.image.oci.signing import remote, verification

    sets = [[load_public(path) for path in paths] for paths in wanted]
    digest, signatures = digests[-1], list[Signature]()
    if isinstance(source, Registry):
        for digest in dict.fromkeys((digests[0], digests[-1])):
            signatures = remote.fetch(source, digest)
            if signatures:
                break
    return [verification.check(str(name), digest, signatures, keys) for keys in sets]


def _fetch(
    name: Reference | Local,
    source: Source,
    blobs: Blobs,
    wanted: Sequence[Descriptor],
    progress: Progress,
    follow: Callable[[Descriptor], Follower | None] = lambda _: None,
) -> None:
    """Have all blobs in the store: several at the same time, the largest first.

    Each is told to who `follow` says, while it comes.
    """
    missing = {d.digest: d for d in wanted if not blobs.has(d)}
    if not missing:
        return
    total = sum(d.size for d in missing.values())
    require_space(blobs.path(""), total, f"pulling {name}")
    lock, stop = threading.Lock(), threading.Event()
    done = 0

    with progress.step(f"pulling {name} ({format_size(total)})") as step:

        def count(size: int) -> None:
            nonlocal done
            if stop.is_set():
                raise StoppedError
            with lock:
                done += size
                _tell(step, done, total)

        def one(descriptor: Descriptor) -> None:
            if stop.is_set():
                raise StoppedError
            blobs.fetch(
                descriptor,
                lambda sink: source.blob(descriptor, sink, count),
                progress,
                follow(descriptor),
            )

        with ThreadPoolExecutor(THREADS, "pull") as pool:
            fault: BaseException | None = None
            try:
                order = sorted(missing.values(), key=lambda d: -d.size)
                work = [pool.submit(one, descriptor) for descriptor in order]
                for each in work:
                    try:
                        each.result()
                    except StoppedError:
                        continue
                    except RingzeroError as found:
                        stop.set()
                        fault = fault or found
            except BaseException:
                stop.set()
                source.close()
                pool.shutdown(cancel_futures=True)
                raise
            if fault is not None:
                raise fault


def _tell(step: Reported, done: int, total: int) -> None:
    step.update(min(done / total, 1.0) if total else None, f"{format_size(done)}")


def unpacked(
    store: Store,
    blobs: Blobs,
    digest: str,
    manifest: Manifest,
    config: ImageConfig,
    fetch: Callable[..., None],
    progress: Progress,
) -> StoredImage:
    """Return the image, whose root file system or disks are put there unless they are.

    `fetch` has its layers come, told to whom it is given.
    """
    place = store.place(digest)
    with locked(store.cache / "images" / f"{place.name}.lock", progress) as _:
        found = store.load(digest)
        if found is not None:
            fetch()
        else:
            from ringzero.host.files import remove_tree

            remove_tree(place)
            if manifest.is_disk:
                from ringzero.image.oci import machinedisks

                fetch()
                with atomic_directory(place) as work:
                    disks, size = machinedisks.place(manifest.layers, blobs, work)
                    info = {**_info(config, manifest, size), "disks": disks}
                    store.write_info(work, digest, info)
            else:
                from ringzero.image.oci import root

                with Unpacking(manifest.layers, config.diff_ids, store.layers) as unpacking:
                    fetch(unpacking.follow)
                    layers = unpacking.finish(blobs, progress)
                with atomic_directory(place) as work:
                    uuid = bytes.fromhex(digest.partition(":")[2])
                    size = root.build(layers, config, uuid, work, progress)
                    store.write_info(work, digest, _info(config, manifest, size))
            found = store.load(digest)
    if found is None:
        raise GuestImageError(f"the image {digest} vanished while it was made", path=place)
    return found


def _info(config: ImageConfig, manifest: Manifest, size: int) -> dict[str, object]:
    return {
        "size": size,
        "entrypoint": config.entrypoint,
        "cmd": config.cmd,
        "user": config.user,
        "workdir": config.workdir,
        "stop_signal": config.stop_signal,
        "env": config.env,
        "ports": config.ports,
        "volumes": config.volumes,
        "healthcheck": config.healthcheck,
        "health": config.health and config.health.to_dict(),
        "created": config.created,
        "machine": config.machine.plain(),
        "config": manifest.config.digest,
        "layers": [layer.digest for layer in manifest.layers],
        "diff_ids": config.diff_ids,
    }
