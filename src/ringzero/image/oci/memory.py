"""The memory layer of an image: an artifact beside it, and what lies of it in the store.

    images/<digest>/memory.json     the digest of the artifact's manifest

The artifact is a manifest whose `subject` is the image's (manifest.md, "Guidelines for Artifact
Usage"), so that the image itself stays what it is, for other programs and by its digest:

    config      BINDING: what a machine must be to go on from it (`ringzero.vm.saved.shipped`)
    layers[0]   STATE: the state of vCPUs and devices
    layers[1]   PAGES: the guest's memory, packed

In a registry it is found among the image's referrers (`referrers`), in a layout on the disk by an
annotation of the image.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ringzero.errors import GuestImageError, HostError
from ringzero.host.files import atomic_file
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.blobs import Blobs, digest_of
from ringzero.image.oci.manifest import OCI_MANIFEST, Descriptor
from ringzero.image.oci.reference import is_digest
from ringzero.records import record

ARTIFACT = "application/vnd.ringzero.memory.v1"
BINDING = "application/vnd.ringzero.memory.binding.v1+json"
STATE = "application/vnd.ringzero.memory.state.v1+json"
PAGES = "application/vnd.ringzero.memory.pages.v1"
# Of an image's descriptor in a layout: the digest of its memory's manifest.
ANNOTATION = "dev.ringzero.memory"
INFO = "memory.json"
# A state tree has some 100 KiB.
MAX_STATE = 64 << 20


@record
class MemoryLayer:
    """A memory layer: its manifest, and its three blobs."""

    manifest: Descriptor
    binding: Descriptor
    state: Descriptor
    pages: Descriptor

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All but the manifest."""
        return self.binding, self.state, self.pages


def document(
    subject: Descriptor, binding: Descriptor, state: Descriptor, pages: Descriptor
) -> bytes:
    """Return the manifest of the memory layer of the image `subject`."""
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": binding.plain(),
        "layers": [state.plain(), pages.plain()],
        "subject": subject.plain(),
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read(data: bytes, image: str) -> MemoryLayer:
    """Return the memory layer of the image with the digest `image` that a manifest describes.

    Raises GuestImageError.
    """
    value = documents.document(data, "the manifest of a memory layer")
    binding = documents.descriptor(value.get("config"), "the memory layer")
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) != len((STATE, PAGES)):
        raise GuestImageError("the memory layer has other parts than a state and pages")
    state, pages = (documents.descriptor(layer, "the memory layer") for layer in layers)
    subject = documents.descriptor(value.get("subject"), "the memory layer")
    kinds = (binding.media_type, state.media_type, pages.media_type)
    if kinds != (BINDING, STATE, PAGES) or subject.digest != image:
        raise GuestImageError("the memory layer is of another kind, or of another image")
    if state.size > MAX_STATE or binding.size > documents.MAX_DOCUMENT:
        raise GuestImageError("the memory layer has a state that is too large")
    return MemoryLayer(Descriptor(OCI_MANIFEST, digest_of(data), len(data)), binding, state, pages)


def find(place: Path, blobs: Blobs, image: str) -> MemoryLayer | None:
    """Return the memory layer of an image whose directory is `place`; None unless all is there."""
    digest = digest_at(place)
    with contextlib.suppress(HostError, GuestImageError):
        layer = read(blobs.read(digest), image) if digest else None
        return layer if layer is not None and all(map(blobs.has, layer.blobs)) else None
    return None


def digest_at(place: Path) -> str | None:
    """Return the digest of the memory layer of the image whose directory is `place`."""
    try:
        value = json.loads((place / INFO).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    digest = value.get("manifest") if isinstance(value, dict) else None
    return digest if isinstance(digest, str) and is_digest(digest) else None


def keep(place: Path, layer: MemoryLayer) -> None:
    """Say that an image has a memory layer, all of whose blobs are there. Raises HostError."""
    with atomic_file(place / INFO) as file:
        file.write(json.dumps({"manifest": layer.manifest.digest}).encode())
