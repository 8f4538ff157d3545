"""Whether an image that is in the store may run under the user's policy.

images/<digest>/admitted.json     {"made": true} of one that was made on this machine, and
                                  {"keys": [...]}: by which keys a signature was good when it came

A signature may be of the index that an image came by, and its name another one by now: keys are
remembered by their digest, beside the image that they let in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ringzero.errors import SignatureError
from ringzero.host.files import atomic_file
from ringzero.image.oci.reference import Local, Reference
from ringzero.image.oci.signing import kept, policy, verification
from ringzero.image.oci.signing.keys import VerifyingKey, load_public
from ringzero.image.oci.store import StoredImage

_NAME = "admitted.json"


def note_made(image: StoredImage) -> None:
    """Remember that an image was made here, by its user. Raises HostError."""
    _write(image, {**_load(image), "made": True})


def note_keys(image: StoredImage, keys: Sequence[VerifyingKey]) -> None:
    """Remember that keys let an image in. Raises HostError."""
    known = _load(image)
    found = dict.fromkeys([*_keys(known), *(key.fingerprint for key in keys)])
    _write(image, {**known, "keys": list(found)})


def check(image: StoredImage, name: Reference | Local) -> None:
    """Raise SignatureError for an image that the user's policy does not let run by a name.

    One that was made here may. Else one of the keys that the policy names for it has to have signed
    it: the signature is kept with it, or was good when it came.
    """
    known = _load(image)
    if known.get("made") is True:
        return
    paths = policy.required(name)
    if not paths:
        return
    keys = [load_public(path) for path in paths]
    if any(key.fingerprint in _keys(known) for key in keys):
        return
    try:
        verification.check(str(name), image.digest, kept.load(image), keys)
    except SignatureError as fault:
        raise SignatureError(
            f"{fault.message}; it is in the store, where it came before the policy asked for "
            "that, or by another name",
            hint=f"`ringzero pull {name}` fetches it with its signatures; `ringzero image sign` "
            "signs it here",
            digest=image.digest,
        ) from None


def _keys(known: dict[str, Any]) -> list[str]:
    value = known.get("keys")
    return [str(key) for key in value] if isinstance(value, list) else []


def _load(image: StoredImage) -> dict[str, Any]:
    try:
        value = json.loads((image.root.parent / _NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _write(image: StoredImage, value: dict[str, Any]) -> None:
    with atomic_file(image.root.parent / _NAME) as file:
        file.write(json.dumps(value).encode())
