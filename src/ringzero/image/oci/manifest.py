"""Manifests, indexes and configurations of images; no I/O.

OCI image specification 1.1 (image-index.md, manifest.md, config.md) and Docker's manifest
version 2, schema 2, which differ in the names of types. Every reader checks what it reads,
and raises GuestImageError for what it cannot be.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from ringzero.api.values import HealthCheck
from ringzero.errors import GuestImageError, NotFoundError
from ringzero.image import machinespec
from ringzero.image.machinespec import MachineSpec
from ringzero.image.oci.reference import is_digest
from ringzero.records import record

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
INDEXES, MANIFESTS = (OCI_INDEX, DOCKER_LIST), (OCI_MANIFEST, DOCKER_MANIFEST)
# An imported machine: a configuration, of which `config` says what ours do, and its disks, each
# with the bytes of a qcow2 image that stands on no other file. Registries and their clients carry
# it as any artifact; what runs containers refuses it by its configuration's type.
DISK_ARTIFACT = "application/vnd.ringzero.disk.v1"
DISK_CONFIG = "application/vnd.ringzero.disk.config.v1+json"
DISK_LAYER = "application/vnd.ringzero.disk.layer.v1.qcow2"
MAX_DISKS = 16
_CONFIGS = (OCI_CONFIG, DOCKER_CONFIG, DISK_CONFIG)
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
# layer.md; "foreign" and "nondistributable" layers lie elsewhere, and nobody makes them any more.
_LAYERS = {
    OCI_LAYER: "tar",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
# Registries take no manifest above 4 MiB; a configuration is of the same kind.
MAX_DOCUMENT = 4 << 20
# Overlay file systems, and so all builders, end at 128 layers; more is no image.
MAX_LAYERS = 512
_MAX_SIZE = 1 << 40
# Names of a platform as Go has them, by the kernel's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# Half a character, which JSON can spell and no file system or program can take.
_SURROGATE = re.compile("[\ud800-\udfff]")
_SIGNAL = re.compile(r"(?:SIG)?[A-Z0-9+]{1,16}|[0-9]{1,2}")


def host_architecture() -> str:
    """Return Go's name of this host's architecture."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


# Thirty years in nanoseconds.
_MAX_COUNT = 10**18
# Fields of a HEALTHCHECK (Docker's "container config"), and ours.
_HEALTH_TIMES = {
    "Interval": "interval",
    "Timeout": "timeout",
    "StartPeriod": "start_period",
    "StartInterval": "start_interval",
}


@record
class Descriptor:
    """A blob: its media type, digest, size in bytes, and of a manifest its platform."""

    media_type: str
    digest: str
    size: int
    architecture: str = ""
    os: str = ""
    variant: str = ""
    name: str = ""

    def plain(self) -> dict[str, object]:
        """Return it as documents have it, without platform and name."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    @property
    def compression(self) -> str:
        """Of a layer: "tar" (none), "gzip" or "zstd". Raises GuestImageError."""
        found = _LAYERS.get(self.media_type)
        if found is None:
            raise GuestImageError(
                f"a layer of the image is of the unknown type {self.media_type[:120]!r}",
                hint="tar layers, with gzip or zstd or without, can be read",
            )
        return found


@record
class Manifest:
    """An image for one platform: its configuration's blob, and its layers' from the lowest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def is_disk(self) -> bool:
        """Whether its layers are the disks of an imported machine."""
        return self.config.media_type == DISK_CONFIG


@record
class ImageConfig:
    """What of an image's configuration a machine needs.

    `diff_ids` are the digests of the layers' plain tars. `env` are NAME=VALUE; `user` is
    USER[:GROUP] by name or number, "" for root; `stop_signal` a name or number, "" for TERM.
    `healthcheck` is Docker's HEALTHCHECK: NONE, or CMD or CMD-SHELL and its words; `health` what is
    to be run for it. `machine` is what the machine itself shall be.
    """

    architecture: str
    os: str
    diff_ids: tuple[str, ...]
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    stop_signal: str = ""
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    created: str = ""
    machine: MachineSpec = MachineSpec()
    health: HealthCheck | None = None


def document(data: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises GuestImageError."""
    if len(data) > MAX_DOCUMENT:
        raise GuestImageError(f"{what} is larger than {MAX_DOCUMENT >> 20} MiB")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise GuestImageError(f"{what} is no JSON: {str(fault)[:120]}") from fault
    if not isinstance(value, dict):
        raise GuestImageError(f"{what} is no JSON object")
    return value


def media_type(value: dict[str, Any], told: str = "") -> str:
    """Return what a document is, from its own field, from the server, or from its form.

    Raises GuestImageError for a manifest of schema 1, and for what is none.
    """
    own = value.get("mediaType")
    found = own if isinstance(own, str) and own else told.partition(";")[0].strip()
    if found.startswith(_SCHEMA_1) or value.get("schemaVersion") == 1:
        raise GuestImageError(
            "the image has a manifest of Docker's schema 1, which carries no sizes and no "
            "checked digests, and is no longer read",
            hint="push it again with a client of this decade: `skopeo copy --format v2s2 ...`",
        )
    if found in (*INDEXES, *MANIFESTS):
        return found
    if isinstance(value.get("manifests"), list):
        return OCI_INDEX
    if isinstance(value.get("layers"), list) and isinstance(value.get("config"), dict):
        return OCI_MANIFEST
    raise GuestImageError(f"neither an image's manifest nor an index, but {found[:120]!r}")


def descriptor(value: object, what: str) -> Descriptor:
    """Return the descriptor in `value`. Raises GuestImageError."""
    if not isinstance(value, dict):
        raise GuestImageError(f"{what} has no descriptor where one belongs")
    digest, size, kind = value.get("digest"), value.get("size"), value.get("mediaType")
    if not isinstance(digest, str) or not is_digest(digest):
        raise GuestImageError(f"{what} has a bad digest: {str(digest)[:100]!r}")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise GuestImageError(f"{what} has a bad size: {str(size)[:40]!r}")
    if not isinstance(kind, str) or not kind:
        raise GuestImageError(f"{what} has a descriptor without a media type")
    platform, notes = value.get("platform"), value.get("annotations")
    platform = platform if isinstance(platform, dict) else {}
    notes = notes if isinstance(notes, dict) else {}
    return Descriptor(
        kind,
        digest,
        size,
        str(platform.get("architecture", "")),
        str(platform.get("os", "")),
        str(platform.get("variant", "")),
        str(notes.get("org.opencontainers.image.ref.name", "")),
    )


def index(value: dict[str, Any]) -> list[Descriptor]:
    """Return the manifests of an index. Raises GuestImageError."""
    found = value.get("manifests")
    if not isinstance(found, list):
        raise GuestImageError("the image's index lists no manifests")
    return [descriptor(item, "the image's index") for item in found]


def choose(manifests: list[Descriptor], architecture: str) -> Descriptor:
    """Return the manifest for Linux on `architecture`, as Go calls it. Raises NotFoundError.

    Of several the first is taken, as the specification says. One that tells no platform is
    taken where it is the only one.
    """
    fitting = [m for m in manifests if (m.os, m.architecture) == ("linux", architecture)]
    if fitting:
        return fitting[0]
    if len(manifests) == 1 and not manifests[0].architecture:
        return manifests[0]
    known = sorted({f"{m.os}/{m.architecture}" for m in manifests if m.architecture})
    raise NotFoundError(
        f"the image is not made for linux/{architecture}",
        hint=f"it is for {', '.join(known)[:300]}" if known else "it is for no platform at all",
    )


def manifest(value: dict[str, Any]) -> Manifest:
    """Return the manifest in `value`. Raises GuestImageError."""
    config = descriptor(value.get("config"), "the image's manifest")
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise GuestImageError("the image's manifest lists no layers")
    if len(layers) > MAX_LAYERS:
        raise GuestImageError(f"the image has {len(layers)} layers, more than {MAX_LAYERS}")
    if config.media_type not in _CONFIGS:
        raise GuestImageError(
            f"not the image of a container, but {config.media_type[:120]!r}",
            hint="artifacts of other kinds (charts, models, signatures) hold no file system",
        )
    if config.size > MAX_DOCUMENT:
        raise GuestImageError(f"the image's configuration is larger than {MAX_DOCUMENT >> 20} MiB")
    found = tuple(descriptor(layer, "a layer of the image") for layer in layers)
    made = Manifest(config, found)
    if made.is_disk:
        _check_disks(found)
    else:
        for layer in found:
            _ = layer.compression
    return made


def _check_disks(layers: tuple[Descriptor, ...]) -> None:
    if not 0 < len(layers) <= MAX_DISKS:
        raise GuestImageError(f"the imported machine has {len(layers)} disks: 1 to {MAX_DISKS}")
    for layer in layers:
        if layer.media_type != DISK_LAYER:
            raise GuestImageError(
                f"a disk of the image is of the unknown type {layer.media_type[:120]!r}",
                hint="the image is damaged, or of a newer ringzero",
            )


def image_config(data: bytes) -> ImageConfig:
    """Return the configuration in `data` (config.md). Raises GuestImageError."""
    value = document(data, "the image's configuration")
    rootfs, config = value.get("rootfs"), value.get("config")
    rootfs = rootfs if isinstance(rootfs, dict) else {}
    config = config if isinstance(config, dict) else {}
    health = config.get("Healthcheck")
    health = health if isinstance(health, dict) else {}
    diff_ids = _words(rootfs.get("diff_ids"), "rootfs.diff_ids")
    if not all(is_digest(digest) for digest in diff_ids):
        raise GuestImageError("the image's configuration has a bad digest in rootfs.diff_ids")
    signal = _word(config.get("StopSignal"), "StopSignal")
    if signal and not _SIGNAL.fullmatch(signal):
        raise GuestImageError(f"the image's stop signal is {signal[:40]!r}, which is none")
    workdir = _word(config.get("WorkingDir"), "WorkingDir")
    return ImageConfig(
        _word(value.get("architecture"), "architecture"),
        _word(value.get("os"), "os"),
        diff_ids,
        _words(config.get("Env"), "Env"),
        _words(config.get("Entrypoint"), "Entrypoint"),
        _words(config.get("Cmd"), "Cmd"),
        _word(config.get("User"), "User"),
        workdir,
        signal.removeprefix("SIG"),
        _keys(config.get("ExposedPorts"), "ExposedPorts"),
        _keys(config.get("Volumes"), "Volumes"),
        _words(health.get("Test"), "Healthcheck.Test"),
        _word(value.get("created"), "created"),
        machinespec.read(config.get(machinespec.MEMBER)),
        _health(health),
    )


def _health(value: dict[str, Any]) -> HealthCheck | None:
    """Return what is to be run for a HEALTHCHECK; times are in nanoseconds, 0 stands for none."""
    kind, *words = _words(value.get("Test"), "Healthcheck.Test") or ("NONE",)
    if kind == "CMD-SHELL":
        words = ["/bin/sh", "-c", *words[:1]] if words else []
    elif kind != "CMD":
        words = []
    if not words:
        return None
    given: dict[str, Any] = {}
    for name, field in _HEALTH_TIMES.items():
        if time := _count(value.get(name), f"Healthcheck.{name}"):
            given[field] = time / 1e9
    if retries := _count(value.get("Retries"), "Healthcheck.Retries"):
        given["retries"] = retries
    return HealthCheck(tuple(words), **given)


def _count(value: object, name: str) -> int:
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise GuestImageError(f"the image's configuration has no number in {name}")
    return value


def _word(value: object, name: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value or _SURROGATE.search(value):
        raise GuestImageError(f"the image's configuration has no text in {name}")
    return value


def _words(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    # Old images have a command as one text.
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise GuestImageError(f"the image's configuration has no list of texts in {name}")
    return tuple(_word(item, name) for item in items)


def _keys(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise GuestImageError(f"the image's configuration has no object in {name}")
    return tuple(sorted(_word(key, name) for key in value))
