"""Signatures in a registry: found, fetched, and put there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from ringzero.errors import GuestImageError, NotFoundError
from ringzero.image.oci import referrers
from ringzero.image.oci.blobs import check_digest, digest_of
from ringzero.image.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor
from ringzero.image.oci.registry import Registry
from ringzero.image.oci.signing import document
from ringzero.image.oci.signing.document import Signature

# Of an image; each costs a request. Those who sign one by one have a manifest each.
_MOST_MANIFESTS = 32


def fetch(registry: Registry, digest: str) -> list[Signature]:
    """Return the signatures of what has a digest: those among its referrers, and by cosign's tag.

    Raises HostError, GuestImageError.
    """
    found = dict[tuple[str, bytes], Signature]()
    for data in _manifests(registry, digest):
        for blob, signature in document.listed(data):
            if (blob.digest, signature) not in found:
                sink = _Memory(blob.size)
                registry.blob(blob, sink, lambda _: None)
                check_digest(bytes(sink.data), blob.digest)
                found[blob.digest, signature] = Signature(bytes(sink.data), signature)
    return list(found.values())


def put(registry: Registry, image: Descriptor, signatures: Sequence[Signature]) -> None:
    """Have a registry know signatures of an image that it has, beside those that are there.

    By cosign's tag, and among the image's referrers. Raises HostError, GuestImageError.
    """
    tag, others = document.tag(image.digest), None
    with contextlib.suppress(NotFoundError):
        others = registry.manifest(tag)[0]
    data, config = document.manifest(image, signatures, others)
    blobs = [(Descriptor(OCI_CONFIG, digest_of(config), len(config)), config)]
    blobs += [
        (Descriptor(document.PAYLOAD, digest_of(s.payload), len(s.payload)), s.payload)
        for s in signatures
    ]
    for blob, content in blobs:
        registry.put_blob(blob, lambda content=content: [content])  # type: ignore[misc]
    if not registry.put_manifest(tag, data, OCI_MANIFEST):
        made = Descriptor(OCI_MANIFEST, digest_of(data), len(data))
        referrers.add(registry, image.digest, made, document.ARTIFACT)


def _manifests(registry: Registry, digest: str) -> Iterator[bytes]:
    """Yield the manifests with signatures of what has a digest."""
    for descriptor in registry.referring(digest, document.ARTIFACT)[:_MOST_MANIFESTS]:
        with contextlib.suppress(NotFoundError):
            data = registry.manifest(descriptor.digest)[0]
            check_digest(data, descriptor.digest)
            yield data
    with contextlib.suppress(NotFoundError):
        yield registry.manifest(document.tag(digest))[0]


class _Memory:
    """A blob in memory, of a size at most."""

    def __init__(self, limit: int) -> None:
        self.data = bytearray()
        self._limit = limit

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def write(self, data: memoryview) -> None:
        """Append bytes. Raises GuestImageError for more than there may be."""
        self.data += data
        if len(self.data) > self._limit:
            raise GuestImageError("more bytes come of a signature than it should have")

    def restart(self) -> None:
        """Forget all."""
        self.data.clear()
