"""ADD of what lies behind an address: http and https, with a checksum or without.

What has the checksum that a step asks for is kept, and not fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ringzero.build.entries import Entry, file_content
from ringzero.errors import GuestImageError, HostError, InvalidValueError, NotFoundError
from ringzero.host.files import atomic_file, make_directory
from ringzero.image.http import FAULTS, Answer, Client, origin
from ringzero.settings import IMAGE_LIMIT

# As Docker has it: for root alone.
_MODE = stat.S_IFREG | 0o600
_PIECE = 1 << 20
_OK, _NOT_FOUND, _GONE = 200, 404, 410
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}


def is_address(text: str) -> bool:
    """Whether a source of ADD is an address, and no file."""
    return text.startswith(("http://", "https://"))


def checked(text: str) -> str:
    """Return a checksum ALGORITHM:HEX as it is compared. Raises InvalidValueError."""
    algorithm, _, digits = text.lower().partition(":")
    length = _LENGTHS.get(algorithm)
    if length is None or len(digits) != length or not re.fullmatch("[0-9a-f]+", digits):
        raise InvalidValueError(
            f"--checksum {text!r} is none", hint="--checksum=sha256:HEX, as `sha256sum` prints it"
        )
    return f"{algorithm}:{digits}"


def name_of(url: str) -> str:
    """Return what the file behind an address is called; "" where that is no name of a file."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return "" if name in (".", "..") or "\0" in name else name


def fetch(url: str, checksum: str, place: Path) -> Entry:
    """Return the file behind an address, fetched into the directory `place`.

    `checksum` is what `checked` returns, or "": what comes is then taken as it is. Raises
    NotFoundError, GuestImageError for another content, HostError.
    """
    make_directory(place)
    path = place / (checksum or f"url:{hashlib.sha256(url.encode()).hexdigest()}").replace(":", "-")
    if not checksum or not path.exists():
        with atomic_file(path) as file:
            _receive(url, checksum, file)
    size = path.stat().st_size
    return Entry(b"", _MODE, size=size, content=file_content(path))


def _receive(url: str, checksum: str, file: BinaryIO) -> None:
    algorithm = checksum.partition(":")[0] or "sha256"
    digest = hashlib.new(algorithm)
    with contextlib.closing(Client()) as client:
        try:
            with client.request("GET", url, {}, {}) as answer:
                for data in _pieces(url, answer):
                    digest.update(data)
                    file.write(data)
        except FAULTS as fault:
            raise HostError(
                f"cannot fetch {url}: {fault or type(fault).__name__}",
                hint="is the address right, and the host on a network?",
            ) from fault
    found = f"{algorithm}:{digest.hexdigest()}"
    if checksum and found != checksum:
        raise GuestImageError(
            f"{url} has the checksum {found}, and not {checksum}",
            hint="what lies there has changed, or the checksum is of something else",
        )


def _pieces(url: str, answer: Answer) -> Iterator[bytes]:
    """Yield what an answer brings, all of it. Raises NotFoundError, HostError."""
    if answer.status in (_NOT_FOUND, _GONE):
        raise NotFoundError(f"there is nothing at {url} ({answer.status})")
    if answer.status != _OK:
        raise HostError(f"{origin(url)} answers with {answer.status} for {url}")
    limit, size, length = IMAGE_LIMIT.get(), 0, answer.header("Content-Length")
    while data := answer.response.read(_PIECE):
        size += len(data)
        if size > limit:
            raise HostError(
                f"{url} is larger than {limit} bytes", hint="RINGZERO_IMAGE_LIMIT allows more"
            )
        yield data
    if length.isdigit() and size != int(length):
        raise HostError(f"{url} broke off after {size} of {length} bytes", hint="try again")
