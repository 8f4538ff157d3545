"""What refers to an image in a registry: artifacts whose `subject` it is, such as its memory.

Registries with an API for referrers list them by that (distribution specification, "Listing
Referrers"). For others they are in an index with a tag of its own ("Referrers Tag Schema").
"""

from __future__ import annotations

import contextlib
import json
from typing import Protocol

from ringzero.errors import NotFoundError
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.manifest import OCI_INDEX, Descriptor


class Manifests(Protocol):
    """A registry, as far as manifests go."""

    def manifest(self, target: str) -> tuple[bytes, str]:
        """Return the document of a tag or digest, and its type if that is told."""
        ...

    def put_manifest(self, target: str, data: bytes, kind: str) -> bool:
        """Store a manifest under a tag or digest; whether its subject has it as a referrer now."""
        ...


def tag(image: str) -> str:
    """Return the tag by which a registry without referrers has those of an image's digest."""
    return image.replace(":", "-")[:128]


def index(made: Descriptor, artifact: str, others: bytes | None) -> bytes:
    """Return the index of an image's referrers with a manifest of the type `artifact`.

    `others` is what it was before: what was there of that type is replaced, all else stays.
    """
    found: list[object] = []
    if others is not None:
        found = [item for item in _listed(others) if item.get("artifactType") != artifact]
    found.append({**made.plain(), "artifactType": artifact})
    whole = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def among(data: bytes, artifact: str) -> list[Descriptor]:
    """Return the manifests of the type `artifact` in an index. Raises GuestImageError."""
    return [
        documents.descriptor(item, "the index of an image's referrers")
        for item in _listed(data)
        if item.get("artifactType") == artifact
    ]


def add(registry: Manifests, image: str, made: Descriptor, artifact: str) -> None:
    """Have a registry without an API for it list a manifest among an image's referrers.

    Raises HostError, GuestImageError.
    """
    others = None
    with contextlib.suppress(NotFoundError):
        others = registry.manifest(tag(image))[0]
    registry.put_manifest(tag(image), index(made, artifact, others), OCI_INDEX)


def _listed(data: bytes) -> list[dict[str, object]]:
    value = documents.document(data, "the index of an image's referrers").get("manifests")
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
