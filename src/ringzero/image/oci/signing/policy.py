"""Which images must be signed, and by whom: a file of the user's, in TOML.

    default = "refuse"                      # or "accept", which is the default

    [[image]]
    name = "registry.example/team/*"        # as in a shell; of what is written REGISTRY/PATH
    keys = ["team.pub", "release.pub"]      # one of them has to have signed; beside this file

    [[image]]
    name = "docker.io/library/*"
    unsigned = true

The first entry whose name fits is the one that counts.
"""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path
from typing import Any

from ringzero.errors import InvalidValueError, SignatureError
from ringzero.host.files import host_error
from ringzero.image.oci.reference import Local, Reference
from ringzero.records import record
from ringzero.settings import IMAGE_POLICY

_MAX_POLICY = 1 << 20
_HINT = 'docs/oci.md, "Signatures", has an example'


@record
class Rule:
    """For names of a pattern: one of `keys` has to have signed; None: nobody has to."""

    pattern: str
    keys: tuple[Path, ...] | None


@record
class Policy:
    """The rules in their order, and whether all else is refused."""

    path: Path
    rules: tuple[Rule, ...]
    refuse: bool

    def keys(self, name: Reference | Local) -> tuple[Path, ...]:
        """Return the files of the keys of which one has to have signed an image; none: no one.

        Raises SignatureError for an image that no rule lets in.
        """
        text = f"{name.host}/{name.path}" if isinstance(name, Reference) else str(name)
        for rule in self.rules:
            if fnmatch.fnmatchcase(text, rule.pattern):
                return rule.keys or ()
        if self.refuse:
            raise SignatureError(
                f"{self.path} lets no image called {text} in",
                hint="add an [[image]] with its name and keys there",
            )
        return ()


def required(name: Reference | Local) -> tuple[Path, ...]:
    """Return the keys that the user's policy asks for, as `Policy.keys`.

    Raises InvalidValueError for a policy with faults, HostError, SignatureError.
    """
    path = IMAGE_POLICY.get()
    if path is None:
        return ()
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise host_error(fault, "read the policy", path) from fault
    return read(data, path).keys(name)


def read(data: bytes, path: Path) -> Policy:
    """Return the policy in a file's content. Raises InvalidValueError."""
    try:
        value = tomllib.loads(data[:_MAX_POLICY].decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as fault:
        raise _bad(path, str(fault)) from fault
    if unknown := value.keys() - {"default", "image"}:
        raise _bad(path, f"there is no {', '.join(sorted(unknown))}")
    default, images = value.get("default", "accept"), value.get("image", [])
    if default not in ("accept", "refuse"):
        raise _bad(path, "the default is accept or refuse")
    if not isinstance(images, list):
        raise _bad(path, "images are written [[image]]")
    rules = tuple(_rule(item, path) for item in images)
    return Policy(path, rules, default == "refuse")


def _rule(item: Any, path: Path) -> Rule:
    known = {"name", "keys", "unsigned"}
    if not isinstance(item, dict) or item.keys() - known:
        raise _bad(path, f"an [[image]] has {', '.join(sorted(known))}")
    name, keys, unsigned = item.get("name"), item.get("keys", []), item.get("unsigned", False)
    if not isinstance(name, str) or not name:
        raise _bad(path, "an [[image]] needs a name")
    texts = isinstance(keys, list) and all(isinstance(key, str) and key for key in keys)
    if not texts or type(unsigned) is not bool or bool(keys) == unsigned:
        raise _bad(path, f"{name!r} needs keys = [FILE, ...], or unsigned = true")
    return Rule(name, None if unsigned else tuple(path.parent / key for key in keys))


def _bad(path: Path, reason: str) -> InvalidValueError:
    return InvalidValueError(f"the policy {path}: {reason}", hint=_HINT)
