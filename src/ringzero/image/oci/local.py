"""Images on this machine's disk: OCI image layouts, and archives as `docker save` writes them.

image-layout.md of the OCI image specification; an archive holds `manifest.json`, a list of
{"Config", "RepoTags", "Layers"} that name files in it, whose layers are plain tars.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ringzero.errors import GuestImageError, InvalidValueError, NotFoundError
from ringzero.host.files import host_error
from ringzero.image.layers import tar
from ringzero.image.layers.plain import kind_of, map_whole
from ringzero.image.oci import manifest
from ringzero.image.oci.manifest import MAX_DOCUMENT, Descriptor
from ringzero.image.oci.memory import ANNOTATION
from ringzero.image.oci.reference import LAYOUT, Local, is_digest

if TYPE_CHECKING:
    from ringzero.image.oci.registry import Sink

_CHUNK = 1 << 20
# What tells how a file is compressed, in bytes.
_HEAD = 4
_LIST, _MAX_LINKS = b"manifest.json", 8


class Source(Protocol):
    """Where an image comes from."""

    def manifest(self, target: str) -> tuple[bytes, str]:
        """Return the document of a tag or digest, and its type if that is told."""
        ...

    def memory(self, image: str) -> bytes | None:
        """Return the manifest of the memory layer of the image with a digest; None without one."""
        ...

    def blob(self, descriptor: Descriptor, sink: Sink, told: Callable[[int], object]) -> None:
        """Append what is missing of a blob to `sink`."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_local(local: Local) -> Source:
    """Return the source for an image on the disk. Raises HostError, GuestImageError."""
    return Layout(local) if local.kind == LAYOUT else Archive(local)


class Layout:
    """A directory in the OCI image layout."""

    def __init__(self, local: Local) -> None:
        self._local = local
        if not (local.path / "index.json").exists():
            what = "is no OCI image layout: it has no index.json"
            raise GuestImageError(
                f"{local.path} {what if local.path.is_dir() else 'is no directory'}",
                hint="write oci:DIRECTORY or oci:DIRECTORY:TAG",
            )

    def manifest(self, target: str) -> tuple[bytes, str]:
        """Return a blob by its digest; for "" what the layout's index has by the chosen name."""
        if target:
            return _small(self._blob(target)), ""
        data = _small(self._local.path / "index.json")
        found = manifest.index(manifest.document(data, "index.json"))
        named = [m for m in found if self._local.name in (None, m.name, m.digest)]
        known = ", ".join(sorted({m.name for m in found if m.name})) or "none by a name"
        if not named:
            raise NotFoundError(
                f"{self._local.path} has no image called {self._local.name!r}",
                hint=f"it has: {known}",
            )
        if len({m.digest for m in named}) > 1 and self._local.name is None:
            platforms = {(m.os, m.architecture) for m in named}
            if len(platforms) < len(named):
                raise InvalidValueError(
                    f"{self._local.path} holds several images",
                    hint=f"write oci:{self._local.path}:TAG; it has: {known}",
                )
            return data, manifest.OCI_INDEX
        return _small(self._blob(named[0].digest)), named[0].media_type

    def memory(self, image: str) -> bytes | None:
        """Return the blob that the layout's index has as the memory layer of an image."""
        value = manifest.document(_small(self._local.path / "index.json"), "index.json")
        for item in value.get("manifests", ()):
            notes = item.get("annotations") if isinstance(item, dict) else None
            digest = notes.get(ANNOTATION) if isinstance(notes, dict) else None
            if isinstance(digest, str) and is_digest(digest) and item.get("digest") == image:
                return _small(self._blob(digest))
        return None

    def blob(self, descriptor: Descriptor, sink: Sink, told: Callable[[int], object]) -> None:
        """Copy a blob."""
        path = self._blob(descriptor.digest)
        try:
            with path.open("rb", buffering=0) as file:
                sink.restart()
                while data := file.read(_CHUNK):
                    sink.write(memoryview(data))
                    told(len(data))
        except OSError as fault:
            raise host_error(fault, "read", path) from fault

    def close(self) -> None:
        """Nothing is held."""

    def _blob(self, digest: str) -> Path:
        algorithm, _, text = digest.partition(":")
        return self._local.path / "blobs" / algorithm / text


class Archive:
    """A tar file of `docker save`. Its manifest, which has none of today's, is made here."""

    def __init__(self, local: Local) -> None:
        self._local = local
        try:
            with local.path.open("rb") as file:
                kind = kind_of(file.read(_HEAD))
            if kind != "tar":
                raise GuestImageError(
                    f"{local.path} is compressed", hint="unpack it first: gunzip, unzstd"
                )
            self._file = os.open(local.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as fault:
            raise host_error(fault, "read", local.path) from fault
        try:
            self._data = map_whole(self._file)
            self._members = {m.name.removeprefix(b"./"): m for m in tar.read(self._data)}
            self._blobs: dict[str, tuple[int, int]] = {}
            self._images = self._listed()
        except BaseException:
            os.close(self._file)
            raise

    def manifest(self, target: str) -> tuple[bytes, str]:
        """Return the manifest of the image that was chosen."""
        return self._made(), manifest.DOCKER_MANIFEST

    @property
    def names(self) -> list[list[str]]:
        """The names of each image, in the archive's order."""
        return [[str(tag) for tag in image.get("RepoTags") or ()] for image in self._images]

    def memory(self, image: str) -> bytes | None:
        """Return None: such archives have none."""
        return None

    def blob(self, descriptor: Descriptor, sink: Sink, told: Callable[[int], object]) -> None:
        """Copy a file of the archive."""
        offset, size = self._blobs[descriptor.digest]
        sink.restart()
        for at in range(offset, offset + size, _CHUNK):
            data = self._data[at : min(at + _CHUNK, offset + size)]
            sink.write(data)
            told(len(data))

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _made(self) -> bytes:
        item = self._chosen()
        config, layers = item.get("Config"), item.get("Layers")
        if not isinstance(config, str) or not isinstance(layers, list):
            raise self._damaged("names no configuration and no layers")
        made = {
            "schemaVersion": 2,
            "mediaType": manifest.DOCKER_MANIFEST,
            "config": self._descriptor(config, manifest.DOCKER_CONFIG),
            "layers": [
                self._descriptor(str(name), "application/vnd.docker.image.rootfs.diff.tar")
                for name in layers
            ],
        }
        return json.dumps(made, sort_keys=True).encode()

    def _listed(self) -> list[dict[str, Any]]:
        try:
            images: Any = json.loads(bytes(self._content(_LIST)[:MAX_DOCUMENT]))
        except (ValueError, RecursionError):
            raise self._damaged("is no JSON") from None
        if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
            raise self._damaged("is no list of images")
        return images

    def _chosen(self) -> dict[str, Any]:
        images = self._images
        name = self._local.name
        wanted = [i for i in images if name is None or name in (i.get("RepoTags") or ())]
        tags = [tag for names in self.names for tag in names]
        if not wanted:
            raise NotFoundError(
                f"{self._local.path} has no image called {name!r}",
                hint=f"it has: {', '.join(tags) or 'none'}",
            )
        if len(wanted) > 1:
            raise InvalidValueError(
                f"{self._local.path} holds several images",
                hint=f"write docker-archive:{self._local.path}:NAME:TAG; it has: {', '.join(tags)}",
            )
        return wanted[0]

    def _descriptor(self, name: str, kind: str) -> dict[str, Any]:
        data = self._content(name.encode("utf-8", "surrogateescape"))
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        member = self._member(name.encode("utf-8", "surrogateescape"))
        self._blobs[digest] = member.offset, member.size
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _content(self, name: bytes) -> memoryview:
        member = self._member(name)
        return self._data[member.offset : member.offset + member.size]

    def _member(self, name: bytes) -> tar.Member:
        # Older archives have a layer that several images share as a symbolic link.
        for _ in range(_MAX_LINKS):
            member = self._members.get(name)
            if member is None:
                raise GuestImageError(
                    f"{self._local.path} is no archive of `docker save`: it has no "
                    f"{name.decode('utf-8', 'replace')}"
                )
            if not member.link:
                return member
            name = os.path.normpath(os.path.join(os.path.dirname(name), member.link))  # noqa: PTH118, PTH120
        raise self._damaged("has links without an end")

    def _damaged(self, reason: str) -> GuestImageError:
        return GuestImageError(f"{self._local.path}: its manifest.json {reason}")


def _small(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > MAX_DOCUMENT:
        raise GuestImageError(f"{path} is larger than {MAX_DOCUMENT >> 20} MiB")
    return data
