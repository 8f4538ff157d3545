"""Images that are made here, brought into the store as those that are pulled."""

from __future__ import annotations

import json
from pathlib import Path

from ringzero.host.progress import QUIET, Progress
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.blobs import Blobs, Partial, digest_of
from ringzero.image.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor
from ringzero.image.oci.pull import unpacked
from ringzero.image.oci.reference import Local, Reference
from ringzero.image.oci.signing import admission
from ringzero.image.oci.store import Store, StoredImage
from ringzero.records import record


@record
class Made:
    """An image: its configuration (config.md), and its layers from the lowest.

    A layer whose file is None is a blob of the store already. `config_type` is the configuration's
    media type; `artifact` what the image is where it is none of containers (manifest.md).
    """

    config: bytes
    layers: tuple[tuple[Descriptor, Path | None], ...]
    config_type: str = OCI_CONFIG
    artifact: str | None = None

    @property
    def manifest(self) -> bytes:
        """Its manifest (manifest.md); equal images have equal ones."""
        whole = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(
                self.config_type, digest_of(self.config), len(self.config)
            ).plain(),
            "layers": [layer.plain() for layer, _ in self.layers],
        }
        if self.artifact is not None:
            whole["artifactType"] = self.artifact
        return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def put(
    made: Made,
    *,
    cache: Path,
    names: tuple[Reference | Local, ...] = (),
    progress: Progress = QUIET,
) -> StoredImage:
    """Bring an image into the store, and let `names` stand for it.

    Raises GuestImageError, HostError.
    """
    store, blobs = Store(cache), Blobs(cache)
    data = made.manifest
    digest = digest_of(data)
    with blobs.in_use(progress):
        for layer, path in made.layers:
            if path is not None:
                blobs.fetch(layer, lambda sink, path=path: pour(path, sink), progress)  # type: ignore[misc]
        blobs.put(made.config, digest_of(made.config))
        blobs.put(data, digest)
        found = documents.manifest(documents.document(data, "the image's manifest"))
        config = documents.image_config(made.config)
        image = unpacked(store, blobs, digest, found, config, lambda *_: None, progress)
        admission.note_made(image)
    with store.lock(progress):
        for name in names:
            store.set_name(name, digest)
    return (store.named(names[0]) if names else None) or image


def pour(path: Path, sink: Partial) -> None:
    """Append what is missing of a file to a blob that is on its way."""
    with path.open("rb") as file:
        file.seek(sink.size)
        while data := file.read(1 << 20):
            sink.write(data)
