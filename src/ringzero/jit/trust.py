"""Compiled engines where others may write to them, as on file systems without owners and modes.

One is taken by its digest, which whoever compiled it has noted in a file that is this user's
alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ringzero.digest import blake2b
from ringzero.host.files import open_regular
from ringzero.host.private import is_trusted
from ringzero.settings import DATA_DIR

_NOTES = "engines.json"
# Far more than the digests of all engines that one user ever has, in bytes.
_MOST = 1 << 20


def is_known(directory: Path) -> bool:
    """Whether what is in a directory is as it was noted."""
    with contextlib.suppress(OSError):
        return _notes().get(str(directory)) == _digest(directory)
    return False


def note(directory: Path) -> None:
    """Note what is in a directory; where that cannot be, it is not."""
    with contextlib.suppress(OSError):
        notes = {path: digest for path, digest in _notes().items() if Path(path).exists()}
        notes[str(directory)] = _digest(directory)
        place = DATA_DIR.get() / _NOTES
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix="writing-")
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(notes, file)
            Path(temporary).rename(place)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def _notes() -> dict[str, str]:
    """Return the digests that this user has noted, by directory."""
    try:
        descriptor = open_regular(DATA_DIR.get() / _NOTES)
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        if not is_trusted(os.fstat(descriptor)):
            return {}
        try:
            notes = json.loads(file.read(_MOST))
        except ValueError:
            return {}
    return notes if isinstance(notes, dict) else {}


def _digest(directory: Path) -> str:
    digest = blake2b(digest_size=32)
    for name, content in _files(directory):
        digest.update(f"{name} {len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.iterdir()):
        with os.fdopen(open_regular(path), "rb") as file:
            yield path.name, file.read()
