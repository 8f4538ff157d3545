"""Signatures of an image of the store: made here, or checked when it came.

images/<digest>/signatures.json     [[payload, signature], ...], each in base64
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from ringzero.host.files import atomic_file
from ringzero.image.oci.reference import Local, Reference
from ringzero.image.oci.signing.document import Signature, payload
from ringzero.image.oci.signing.keys import SigningKey
from ringzero.image.oci.store import StoredImage

_NAME = "signatures.json"


def load(image: StoredImage) -> list[Signature]:
    """Return an image's signatures, none where anything is amiss."""
    try:
        value = json.loads((image.root.parent / _NAME).read_bytes())
        return [Signature(*map(base64.b64decode, pair)) for pair in value]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def add(image: StoredImage, signatures: Sequence[Signature]) -> None:
    """Keep signatures beside those that an image has. Raises HostError."""
    known = load(image)
    known += [signature for signature in signatures if signature not in known]
    pairs = [
        [base64.b64encode(data).decode() for data in (item.payload, item.signature)]
        for item in known
    ]
    with atomic_file(image.root.parent / _NAME) as file:
        file.write(json.dumps(pairs).encode())


def sign(image: StoredImage, name: Reference | Local, key: SigningKey) -> Signature:
    """Sign an image by the name that it has or will have; the signature is kept.

    One that this key has made before is returned. Raises HostError.
    """
    text = f"{name.host}/{name.path}" if isinstance(name, Reference) else str(name)
    data = payload(text, image.digest)
    for known in load(image):
        if known.payload == data and key.public.fits(known.signature, data):
            return known
    made = Signature(data, key.sign(data))
    add(image, [made])
    return made
