"""What a signature of an image is on the wire; no I/O.

"Simple signing" as cosign has it (sigstore/cosign, specs/SIGNATURE_SPEC.md): the payload is a JSON
document that tells the digest of the image's manifest or index, and what is signed is its bytes.
All signatures of an image are the layers of one manifest, each with its payload as content and the
signature itself as an annotation. The manifest has a tag of its own, and the image as `subject`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

from ringzero.errors import GuestImageError
from ringzero.image.oci import manifest as documents
from ringzero.image.oci.blobs import digest_of
from ringzero.image.oci.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor
from ringzero.image.oci.reference import is_digest
from ringzero.records import record

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
ARTIFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
# A payload has some 200 bytes, and more where it has annotations of who signed.
MAX_PAYLOAD = 64 << 10
# More than anybody has; each is fetched, and costs an operation with each key.
MAX_SIGNATURES = 100


@record
class Signature:
    """A payload and what a key made of it."""

    payload: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """The digest that is signed. Raises GuestImageError for a payload that is none."""
        critical = documents.document(self.payload, "a signature").get("critical")
        critical = critical if isinstance(critical, dict) else {}
        image = critical.get("image")
        digest = image.get("docker-manifest-digest") if isinstance(image, dict) else None
        if critical.get("type") != _TYPE or not is_digest(digest):
            raise GuestImageError("a signature is of something else than an image")
        return str(digest)

    def descriptor(self) -> dict[str, Any]:
        """Return it as a layer of the manifest with an image's signatures."""
        plain = Descriptor(PAYLOAD, digest_of(self.payload), len(self.payload)).plain()
        return {**plain, "annotations": {ANNOTATION: base64.b64encode(self.signature).decode()}}


def payload(name: str, digest: str) -> bytes:
    """Return what is signed of the image with a digest, which is called `name`, without a tag."""
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": _TYPE,
    }
    return json.dumps({"critical": critical, "optional": None}, separators=(",", ":")).encode()


def tag(digest: str) -> str:
    """Return the tag of the manifest with the signatures of what has a digest."""
    return digest.replace(":", "-") + ".sig"


def listed(data: bytes) -> list[tuple[Descriptor, bytes]]:
    """Return the payloads' blobs and the signatures in a manifest. Raises GuestImageError.

    Layers of other kinds are left out.
    """
    found = []
    for item in _layers(data):
        notes = item.get("annotations")
        text = notes.get(ANNOTATION) if isinstance(notes, dict) else None
        if item.get("mediaType") != PAYLOAD or not isinstance(text, str):
            continue
        blob = documents.descriptor(item, "a signature")
        if blob.size > MAX_PAYLOAD:
            raise GuestImageError(f"a signature of the image is larger than {MAX_PAYLOAD} bytes")
        try:
            found.append((blob, base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError):
            raise GuestImageError("a signature of the image is not in base64") from None
    if len(found) > MAX_SIGNATURES:
        raise GuestImageError(f"the image has {len(found)} signatures, more than {MAX_SIGNATURES}")
    return found


def manifest(
    image: Descriptor, signatures: Sequence[Signature], others: bytes | None
) -> tuple[bytes, bytes]:
    """Return the manifest with an image's signatures, and its configuration.

    `others` is the manifest that was there before; all of it stays. Raises GuestImageError.
    """
    layers = [] if others is None else _layers(others)
    layers += [found for s in signatures if (found := s.descriptor()) not in layers]
    # As of any image, whose layers are not packed.
    diff_ids = [layer.get("digest") for layer in layers]
    config = {
        "architecture": "",
        "created": "0001-01-01T00:00:00Z",
        "history": [{"created": "0001-01-01T00:00:00Z"} for _ in layers],
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {},
    }
    packed = json.dumps(config, separators=(",", ":")).encode()
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": Descriptor(OCI_CONFIG, digest_of(packed), len(packed)).plain(),
        "layers": layers,
        "subject": image.plain(),
    }
    return json.dumps(value, separators=(",", ":")).encode(), packed


def _layers(data: bytes) -> list[dict[str, Any]]:
    value = documents.document(data, "the manifest of an image's signatures").get("layers")
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
