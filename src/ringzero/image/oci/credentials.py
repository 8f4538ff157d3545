"""Who we are to a registry: what Docker's and containers' configurations know.

$REGISTRY_AUTH_FILE, $DOCKER_CONFIG/config.json or ~/.docker/config.json, and
$XDG_RUNTIME_DIR/containers/auth.json (containers-auth.json(5)), the first that has an entry.
Credential helpers are programs called docker-credential-NAME that take a server's name on
standard input and answer in JSON (docker/docker-credential-helpers).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringzero.errors import HostError
from ringzero.image.oci.reference import DEFAULT_REGISTRY, Reference
from ringzero.records import field, record

# What Docker's own files call its registry.
_HUB_KEY = "https://index.docker.io/v1/"
# A helper that asks its user waits for as long as this, in seconds.
_HELPER_PATIENCE = 120
# The user name with which a helper says that its secret is an identity token.
_TOKEN_USER = "<token>"


@record
class Credentials:
    """A name and a secret, or an identity token (OAuth 2's refresh token)."""

    username: str = ""
    secret: str = field(default_factory=str, repr=False)
    identity_token: str = field(default_factory=str, repr=False)

    def basic(self) -> str:
        """Return the value of an Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.secret}".encode()
        return "Basic " + base64.b64encode(pair).decode()


def find(reference: Reference) -> Credentials | None:
    """Return the credentials for the registry of `reference`, or None.

    Raises HostError for a configuration that cannot be read, and a helper that fails.
    """
    for path in _files():
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as fault:
            raise HostError(f"cannot read {path}: {fault}", hint="check the file") from fault
        try:
            config = json.loads(text)
        except (ValueError, RecursionError) as fault:
            raise HostError(
                f"{path} is no JSON: {fault}", hint="it keeps the credentials for registries"
            ) from fault
        if isinstance(config, dict) and (found := _in_config(config, reference, path)):
            return found
    return None


def _files() -> Iterator[Path]:
    environment = os.environ
    if named := environment.get("REGISTRY_AUTH_FILE"):
        yield Path(named)
    if place := environment.get("DOCKER_CONFIG"):
        yield Path(place) / "config.json"
    elif home := environment.get("HOME"):
        yield Path(home) / ".docker" / "config.json"
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"


def _keys(reference: Reference) -> list[str]:
    """Return what an entry for `reference` may be called, the closest first."""
    if reference.host == DEFAULT_REGISTRY:
        return [_HUB_KEY, "index.docker.io", DEFAULT_REGISTRY]
    parts = [reference.host, *reference.path.split("/")]
    plain = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
    host = reference.host
    urls = [f"{scheme}://{host}{end}" for scheme in ("https", "http") for end in ("", "/", "/v2/")]
    return [*plain, *urls, f"https://{host}/v1/"]


def _in_config(config: dict[str, Any], reference: Reference, path: Path) -> Credentials | None:
    keys = _keys(reference)
    helpers = _table(config, "credHelpers")
    for key in keys:
        if isinstance(name := helpers.get(key), str) and name:
            return _ask(name, keys[0])
    store = config.get("credsStore")
    if isinstance(store, str) and store and (found := _ask(store, keys[0])):
        return found
    entries = _table(config, "auths")
    for key in keys:
        if isinstance(entry := entries.get(key), dict) and (found := _entry(entry, path)):
            return found
    return None


def _table(config: dict[str, Any], name: str) -> dict[str, Any]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _entry(entry: dict[str, Any], path: Path) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    text = entry.get("auth")
    if not isinstance(text, str) or not text:
        name, secret = entry.get("username"), entry.get("password")
        if isinstance(name, str) and isinstance(secret, str):
            return Credentials(name, secret)
        return None
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError) as fault:
        raise HostError(f"{path}: an entry of auths is not base64", hint="log in again") from fault
    name, colon, secret = pair.partition(":")
    return Credentials(name, secret.rstrip("\0")) if colon else None


def _ask(helper: str, server: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    if "/" in helper:
        raise HostError(f"{helper!r} cannot be the name of a credential helper")
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        raise HostError(
            f"the credential helper {program} does not run: {fault}",
            hint="it is named in Docker's config.json; install it, or take its line out",
        ) from fault
    if done.returncode:
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        if "not found" in said.lower():
            return None
        raise HostError(f"the credential helper {program} failed: {said[:200]}")
    try:
        answer = json.loads(done.stdout)
        name, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError) as fault:
        raise HostError(f"the credential helper {program} answers nonsense") from fault
    if name == _TOKEN_USER:
        return Credentials(identity_token=str(secret))
    return Credentials(str(name), str(secret)) if secret else None
