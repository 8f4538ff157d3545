"""What cloud-init in a guest is given: a NoCloud disk (cloud-init's "NoCloud" data source).

    seed = Seed.read(user_data="user-data.yaml", keys=["id_ed25519.pub"], hostname="web")
    data = seed.image()             # attached read-only: a vfat disk called CIDATA

What cloud-init would pass over in silence, or only tell in the guest's log, is refused here: YAML
that is none, user data of no known kind, a private key. The instance's identifier comes from the
content: the same content is the same instance, on which cloud-init does nothing a second time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ringzero.errors import InvalidValueError, MissingFileError
from ringzero.host.files import host_error
from ringzero.image.fatimage import fat_image
from ringzero.records import record
from ringzero.units import MIB

LABEL = "CIDATA"
# cloud-init reads them whole; user data of clouds has at most 64 KiB.
_MAX_FILE = 16 * MIB
# What user data may begin with (cloud-init, "User data formats"); MIME begins with a header.
_HEADERS = (
    "#cloud-config", "#!", "#include", "#include-once", "#cloud-boothook", "#part-handler",
    "#upstart-job", "#cloud-config-archive", "#cloud-config-jsonp", "## template: jinja",
    "Content-Type:", "MIME-Version:", "From ",
)  # fmt: skip
_GZIP = b"\x1f\x8b"
_NOTHING = b"#cloud-config\n{}\n"
# Images of clouds turn root away, even with the user's own key; `ringzero ssh` is root by itself.
# It is vendor data: user data may say otherwise.
_ROOT_TOO = "#cloud-config\ndisable_root: false\n"
_KEY = re.compile(r"(ssh-(rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) [A-Za-z0-9+/=]+")
# RFC 1123, and dots for a domain.
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@record
class Seed:
    """The files of a NoCloud disk, checked. With `agent`, cloud-init starts ringzero's agent."""

    user_data: bytes
    meta_data: bytes
    network_config: bytes | None = None
    agent: bool = False
    # Whether somebody is to log in with a key.
    keys: bool = False

    @classmethod
    def read(
        cls,
        *,
        user_data: str | None = None,
        keys: Sequence[str] = (),
        hostname: str | None = None,
        network_config: str | None = None,
        agent: bool = False,
    ) -> Self:
        """Read and check the files. Raises InvalidValueError, MissingFileError, HostError."""
        user = _NOTHING if user_data is None else _user_data(user_data)
        network = None if network_config is None else _network(network_config)
        meta: dict[str, Any] = {}
        if hostname is not None:
            if not _HOSTNAME.fullmatch(hostname) or len(hostname) > 253:
                raise InvalidValueError(
                    f"{hostname!r} is no host name", hint="letters, digits and '-', at most 63"
                )
            meta["local-hostname"] = hostname
        found = [key for path in keys for key in _keys(path)]
        if found:
            meta["public-keys"] = found
        about = json.dumps([user.hex(), meta, network.hex() if network else None], sort_keys=True)
        digest = hashlib.sha256(about.encode()).hexdigest()
        # JSON is YAML.
        text = json.dumps({"instance-id": f"ringzero-{digest[:16]}", **meta}, indent=1)
        return cls(user, text.encode() + b"\n", network, agent, bool(found))

    def image(self) -> bytes:
        """Return the disk: vfat, with the label by which cloud-init knows it."""
        files = {"user-data": self.user_data, "meta-data": self.meta_data}
        if self.network_config is not None:
            files["network-config"] = self.network_config
        vendor: list[dict[str, str]] = []
        if self.keys:
            vendor.append({"type": "text/cloud-config", "content": _ROOT_TOO})
        if self.agent:
            from ringzero.image import agent

            hook, found = agent.on_seed()
            vendor.append({"type": "text/cloud-boothook", "content": hook})
            files |= found
        if vendor:
            # JSON is YAML.
            text = json.dumps(vendor, indent=1)
            files["vendor-data"] = f"#cloud-config-archive\n{text}\n".encode()
        return fat_image(files, LABEL)


def _read(path: str, noun: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except FileNotFoundError as fault:
        raise MissingFileError(f"{noun} {path} does not exist", hint="check the path") from fault
    except OSError as fault:
        raise host_error(fault, "read", path) from fault
    if len(data) > _MAX_FILE:
        raise InvalidValueError(
            f"{noun} {path} is larger than 16 MiB", hint="is it the right file?"
        )
    return data


def _user_data(path: str) -> bytes:
    data = _read(path, "cloud-init's user data")
    if data.startswith(_GZIP):
        return data
    try:
        text = data.decode()
    except UnicodeDecodeError as fault:
        raise InvalidValueError(f"{path} is no text, and no user data of cloud-init's") from fault
    first = text.lstrip().partition("\n")[0].strip()
    if not first.startswith(_HEADERS):
        raise InvalidValueError(
            f"{path} begins with {first[:60]!r}, by which cloud-init does not know what it is",
            hint="begin it with a line '#cloud-config' for YAML, or '#!/bin/sh' for a script",
        )
    if first == "#cloud-config":
        _yaml(text, path)
    return data


def _network(path: str) -> bytes:
    data = _read(path, "the network configuration")
    content = _yaml(data.decode("utf-8", "replace"), path)
    inner = content.get("network", content)
    if not isinstance(inner, dict) or inner.get("version") not in (1, 2):
        raise InvalidValueError(
            f"{path} is no network configuration of version 1 or 2",
            hint="begin it with 'version: 2' and 'ethernets:'",
        )
    return data


def _yaml(text: str, path: str) -> dict[str, Any]:
    """Return the mapping in a YAML text. Raises InvalidValueError with the place of a fault."""
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        place = getattr(fault, "problem_mark", None)
        where = f", line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(fault, "problem", None) or "it cannot be read"
        raise InvalidValueError(f"{path}{where}: no valid YAML: {problem}") from fault
    except RecursionError as fault:
        raise InvalidValueError(f"{path}: YAML that is nested too deep") from fault
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidValueError(
            f"{path}: a {type(content).__name__} where cloud-init takes names with values",
            hint="write lines such as 'packages: [git]'",
        )
    return content


def _keys(path: str) -> list[str]:
    text = _read(path, "the key").decode("utf-8", "replace")
    if "PRIVATE KEY" in text:
        raise InvalidValueError(f"{path} is a private key", hint=f"give the public one: {path}.pub")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    wrong = next((line for line in found if not _KEY.search(line)), None)
    if wrong is not None or not found:
        raise InvalidValueError(
            f"{path} holds no public key of OpenSSH's", hint="it begins with ssh-ed25519 or ssh-rsa"
        )
    return found
