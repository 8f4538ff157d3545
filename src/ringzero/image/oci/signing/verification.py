"""Whether an image is signed by one of several keys; no I/O."""

from __future__ import annotations

from collections.abc import Sequence

from ringzero.errors import GuestImageError, SignatureError
from ringzero.image.oci.signing.document import Signature
from ringzero.image.oci.signing.keys import VerifyingKey

_HINT = "nothing of it was taken; `ringzero image sign` signs, `push` takes signatures along"


def check(
    name: str, digest: str, signatures: Sequence[Signature], keys: Sequence[VerifyingKey]
) -> tuple[Signature, VerifyingKey]:
    """Return the signature by which one of `keys` says that `name` is what has `digest`, and which.

    Raises SignatureError where there is none: one of another image, or by other keys.
    """
    other: str | None = None
    for signature in signatures:
        fitting = [key for key in keys if key.fits(signature.signature, signature.payload)]
        if not fitting:
            continue
        try:
            found = signature.digest
        except GuestImageError:
            continue
        if found == digest:
            return signature, fitting[0]
        other = found
    whose = " or ".join(str(key.path) for key in keys)
    if not signatures:
        reason = "is not signed"
    elif other is not None:
        reason = f"has a signature of {whose} that is of another image, {other}"
    else:
        count = f"{len(signatures)} signature{'s' if len(signatures) > 1 else ''}"
        reason = f"has {count}, none of which is good by {whose}"
    raise SignatureError(f"{name} ({digest}) {reason}", hint=_HINT, digest=digest)
