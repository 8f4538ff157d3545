"""Names of images as Docker's users write them; no I/O.

    [HOST[:PORT]/]PATH[:TAG][@DIGEST]        an image in a registry
    oci:PATH[:TAG]                           a directory in the OCI image layout
    docker-archive:FILE[:NAME:TAG]           a tar file as `docker save` writes it

The grammar of a registry's names is that of distribution's `reference` package: the first
part is a host when it holds a dot or a colon, or is "localhost"; without a host the image is
Docker Hub's, and there a path of one part is in "library". The tag is "latest" unless a tag
or a digest is given.
"""

from __future__ import annotations

import re
from pathlib import Path

from ringzero.errors import InvalidValueError
from ringzero.records import record, replace

DEFAULT_REGISTRY, _LIBRARY, _DEFAULT_TAG = "docker.io", "library", "latest"
# Docker Hub's registry is not where its name says.
_ENDPOINTS = {DEFAULT_REGISTRY: "registry-1.docker.io"}
# Names that mean Docker Hub, too.
_ALIASES = {"index.docker.io": DEFAULT_REGISTRY, "registry-1.docker.io": DEFAULT_REGISTRY}

_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"(?::[0-9]{1,5})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?"
)
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# image-spec, descriptor.md: the registered algorithms, with the lengths of their hex digits.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
# distribution's limit of a repository's name, host included.
_MAX_NAME = 255
_PORT_LIMIT = 1 << 16
LAYOUT, ARCHIVE = "oci", "docker-archive"


def is_digest(text: object) -> bool:
    """Whether `text` is a digest of an algorithm that is supported."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether a tag may be called `text`."""
    return _TAG.fullmatch(text) is not None


@record
class Reference:
    """An image in a registry: `host` as people write it, `path` in it, a tag, a digest or both."""

    host: str
    path: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        text = f"{self.host}/{self.path}"
        if self.tag is not None:
            text += f":{self.tag}"
        return text if self.digest is None else f"{text}@{self.digest}"

    @property
    def familiar(self) -> str:
        """The shortest name that means the same: without Docker Hub's own parts."""
        return str(self).removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix(f"{_LIBRARY}/")

    @property
    def endpoint(self) -> str:
        """HOST[:PORT] of the registry's server."""
        return _ENDPOINTS.get(self.host, self.host)

    @property
    def target(self) -> str:
        """What to ask the registry for: the digest, or the tag."""
        return self.digest or self.tag or _DEFAULT_TAG


@record
class Local:
    """Images on this machine's disk: `kind` is LAYOUT or ARCHIVE; `name` chooses one of several."""

    kind: str
    path: Path
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f":{self.name}" if self.name else "")


def parse(text: str) -> Reference | Local:
    """Return what `text` names. Raises InvalidValueError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in (LAYOUT, ARCHIVE):
        return _local(kind, rest, text)
    return parse_reference(text.removeprefix("docker://"))


def _local(kind: str, rest: str, text: str) -> Local:
    if not rest or "\0" in rest:
        raise InvalidValueError(
            f"no path in {text!r}", hint=f"write {kind}:PATH or {kind}:PATH:TAG"
        )
    path, colon, name = rest.partition(":")
    # A path with a colon in it is one when it is there.
    if colon and not Path(rest).exists():
        return Local(kind, Path(path), name or None)
    return Local(kind, Path(rest))


def parse_reference(text: str) -> Reference:
    """Return the image of a registry that `text` names. Raises InvalidValueError."""
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _bad(text, f"{digest!r} is no digest (sha256: and 64 hexadecimal digits)")
    head, slash, tail = rest.partition("/")
    host, path = DEFAULT_REGISTRY, rest
    if slash and ("." in head or ":" in head or head == "localhost" or head != head.lower()):
        host, path = head, tail
    if not _HOST.fullmatch(host):
        raise _bad(text, f"{host!r} is no host")
    _, colon, port = host.rpartition(":")
    if colon and port.isdecimal() and not 0 < int(port) < _PORT_LIMIT:
        raise _bad(text, f"{port} is no port")
    path, colon, tag = path.partition(":")
    if colon and not is_tag(tag):
        raise _bad(text, f"{tag!r} is no tag")
    host = _ALIASES.get(host, host)
    if not _PATH.fullmatch(path):
        reason = "a repository's name is in lower case" if path != path.lower() else "bad name"
        raise _bad(text, reason)
    if host == DEFAULT_REGISTRY and "/" not in path:
        path = f"{_LIBRARY}/{path}"
    if len(f"{host}/{path}") > _MAX_NAME:
        raise _bad(text[:64] + "...", f"longer than {_MAX_NAME} characters")
    found = Reference(host, path, tag or None, digest or None)
    if found.tag is None and found.digest is None:
        return replace(found, tag=_DEFAULT_TAG)
    return found


def _bad(text: str, reason: str) -> InvalidValueError:
    return InvalidValueError(
        f"{text!r} names no image: {reason}",
        hint="write NAME:TAG, REGISTRY/NAME:TAG, oci:PATH or docker-archive:FILE",
    )
