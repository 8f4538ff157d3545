"""Templates that go with an image: taken to pieces that any host can have, and put together again.

A template is known by a host's own files (`ringzero.vm.saved.templates`). What is bound here is
the same for all hosts: how state and memory are written, the engine, the CPU model, what the
machine is, and the bytes of the root file system, of which the guest has some in memory. The
kernel is not: it is in the memory, and a guest that goes on reads nothing of it from the host.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ringzero.config.tree import config_to_tree
from ringzero.errors import GuestImageError, RingzeroError, StateError
from ringzero.host.files import host_error
from ringzero.image.oci import memory as layers
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.memory import MemoryLayer
from ringzero.image.oci.store import METADATA, ROOT
from ringzero.settings import CACHE_DIR
from ringzero.vm import boot
from ringzero.vm import state as states
from ringzero.vm.saved import packed, templates
from ringzero.vm.saved.templates import Key, Templates

# Raised whenever a reader of before would misread what is written now.
FORMAT = 1
_PIECE = 1 << 20
# What people are told of a binding that does not fit.
_DIFFERENCES = {
    "format": "the memory layer is of another version of ringzero",
    "template": "the memory layer is of another version of ringzero",
    "state": "the memory layer is of another version of ringzero",
    "engine": "the memory layer is of the engine {theirs}, and this is {ours}",
    "cpu": "the memory layer is of the CPU model {theirs}, and this is {ours}",
    "machine": "the memory layer is of a machine of other memory, vCPUs or devices",
    "line": "the memory layer is of another kernel command line",
    "root": "the memory layer is of a root file system that was written otherwise",
}


def bound(key: Key) -> bytes:
    """Return what a machine of `key` must have in common with a memory layer: JSON, one form.

    Raises HostError.
    """
    config = key.config
    tree = config_to_tree(config)
    line = boot.own_command_line(config, config.command_line, templates.HOSTNAME)
    for name in ("kernel", "initrd", "engine", "cpu", "command_line"):
        tree.pop(name, None)
    root = config.disks[-1].path
    for device in tree["devices"]:
        if device.get("path") == str(root):
            device["path"] = ROOT
    found = {
        "format": FORMAT,
        "template": templates.FORMAT,
        "state": states.VERSION,
        "engine": config.engine,
        "cpu": config.cpu,
        "machine": tree,
        "line": line,
        "root": _sum_of(root, root.parent / METADATA),
    }
    return _plain(found)


def take_apart(store: Templates, key: Key, directory: Path) -> tuple[bytes, bytes, Path]:
    """Return binding, state and pages of a template; the last is a file in `directory`.

    Raises NotFoundError, StateError, HostError.
    """
    template = store.take(key)
    try:
        pages = directory / packed.write(directory, template.size, template.blocks())
        state = {"taken": template.taken, "size": template.size, "machine": template.tree}
    finally:
        template.close()
    return bound(key), _plain(state), pages


def bring(key: Key, store: Templates) -> str:
    """Have the template of `key` in the store, from the memory layer of the image that it runs.

    Returns "" where it is there now, or why not. Raises nothing.
    """
    place = key.config.disks[-1].path.parent
    if not (place / layers.INFO).exists():
        return "its image has come without its memory layer"
    blobs = Blobs(CACHE_DIR.get())
    try:
        layer = _layer(place, blobs)
        theirs = json.loads(blobs.read(layer.binding.digest))
        ours = json.loads(bound(key))
        for name, told in _DIFFERENCES.items():
            if theirs.get(name) != ours[name]:
                return told.format(theirs=theirs.get(name), ours=ours[name])
        return _put_together(key, store, layer, blobs)
    except RingzeroError as fault:
        return f"the memory layer cannot be used: {fault.message}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "the memory layer is damaged"


def _layer(place: Path, blobs: Blobs) -> MemoryLayer:
    from ringzero.image.oci.store import Store

    image = Store(CACHE_DIR.get()).at(place)
    layer = None if image is None else layers.find(place, blobs, image.digest)
    if layer is None:
        raise StateError("some of it is missing")
    return layer


def _put_together(key: Key, store: Templates, layer: MemoryLayer, blobs: Blobs) -> str:
    found = json.loads(blobs.read(layer.state.digest))
    size, taken, tree = found["size"], found["taken"], found["machine"]
    if size != key.config.memory or type(taken) is not int or not isinstance(tree, dict):
        raise GuestImageError("its state is of another machine")
    with store.making(key) as work:
        if work is None:
            return "another machine is bringing it"
        templates.write_parts(
            work,
            key,
            taken=taken,
            size=size,
            tree=tree,
            fill=lambda fd: packed.unpack(blobs.path(layer.pages.digest), size, fd),
        )
    return ""


def _plain(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sum_of(*paths: Path) -> str:
    """Return a sum over the root's disk and where in it files are.

    What is in the files, the digest of the image says, which has the memory layer.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as file:
                while data := file.read(_PIECE):
                    digest.update(data)
        except OSError as fault:
            raise host_error(fault, "read", path) from fault
    return digest.hexdigest()
