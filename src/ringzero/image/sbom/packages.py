"""The packages in an image's files, as its own package managers know them.

Read are the databases of dpkg (deb822), apk (installed) and Python's installers (core metadata,
PEP 566). Those of rpm are named as not read. Their bytes are not trusted: a database has a
limit, and an entry without a name or version is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from email.parser import HeaderParser
from typing import Protocol

from ringzero.records import record
from ringzero.units import MIB

# A whole distribution's dpkg status is 10 MiB at most.
_MAX_DATABASE, _MAX_METADATA = 64 * MIB, MIB
_DPKG, _DPKG_PARTS, _APK = "/var/lib/dpkg/status", "/var/lib/dpkg/status.d", "/lib/apk/db/installed"
_RPM = ("/var/lib/rpm", "/usr/lib/sysimage/rpm")
# Where Python's installers put what they install.
_PYTHON_PLACES = ("/usr/lib", "/usr/local/lib", "/opt/venv/lib", "/venv/lib", "/app/.venv/lib")
_PYTHON_PARTS = ("site-packages", "dist-packages")


class Tree(Protocol):
    """Files by absolute paths (`ringzero.image.oci.files`)."""

    def read(self, path: str, limit: int) -> bytes:
        """Return a file; b"" where there is none."""
        ...

    def listing(self, path: str) -> list[str]:
        """Return the names in a directory; none where there is none."""
        ...


@record
class Package:
    """One that is installed. `kind` is the type of its package URL: deb, apk, pypi."""

    kind: str
    name: str
    version: str
    architecture: str = ""
    source: str = ""
    license: str = ""
    homepage: str = ""


@record
class Inventory:
    """All packages of an image, its distribution (os-release(5)), and what could not be read."""

    packages: tuple[Package, ...]
    distribution: str
    release: str
    pretty_name: str
    unread: tuple[str, ...]


def inventory(tree: Tree) -> Inventory:
    """Return what is installed, by kind and name. Raises what reading does."""
    found = {package for read in _READERS for package in read(tree)}
    release = _release(tree)
    return Inventory(
        packages=tuple(sorted(found, key=lambda p: (p.kind, p.name, p.version, p.architecture))),
        distribution=release.get("ID", ""),
        release=release.get("VERSION_ID", ""),
        pretty_name=release.get("PRETTY_NAME", ""),
        unread=tuple(place for place in _RPM if tree.listing(place)),
    )


def _release(tree: Tree) -> dict[str, str]:
    """Return os-release(5): shell assignments, without expansions."""
    data = tree.read("/etc/os-release", MIB) or tree.read("/usr/lib/os-release", MIB)
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").splitlines())
    return {name.strip(): value.strip().strip("\"'") for name, equals, value in pairs if equals}


def _paragraphs(data: bytes) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file (deb822(5)), without lines that continue one."""
    for text in data.decode("utf-8", "replace").split("\n\n"):
        lines = (line.partition(":") for line in text.splitlines() if line[:1].strip())
        fields = {name: value.strip() for name, colon, value in lines if colon}
        if fields:
            yield fields


def _dpkg(tree: Tree) -> Iterator[Package]:
    databases = [tree.read(_DPKG, _MAX_DATABASE)]
    # Images without dpkg itself have a file for each package.
    databases += [
        tree.read(f"{_DPKG_PARTS}/{name}", _MAX_METADATA)
        for name in tree.listing(_DPKG_PARTS)
        if not name.endswith(".md5sums")
    ]
    for data in databases:
        for fields in _paragraphs(data):
            state = fields.get("Status", "install ok installed").split()
            if state[-1:] != ["installed"] or not (fields.get("Package") and fields.get("Version")):
                continue
            yield Package(
                kind="deb",
                name=fields["Package"],
                version=fields["Version"],
                architecture=fields.get("Architecture", ""),
                source=fields.get("Source", "").partition(" ")[0],
                homepage=fields.get("Homepage", ""),
            )


def _apk(tree: Tree) -> Iterator[Package]:
    """Yield the packages of apk's database: a letter, a colon and a value a line."""
    for fields in _paragraphs(tree.read(_APK, _MAX_DATABASE)):
        if fields.get("P") and fields.get("V"):
            yield Package(
                kind="apk",
                name=fields["P"],
                version=fields["V"],
                architecture=fields.get("A", ""),
                source=fields.get("o", ""),
                license=fields.get("L", ""),
                homepage=fields.get("U", ""),
            )


def _python(tree: Tree) -> Iterator[Package]:
    for place in _PYTHON_PLACES:
        for version in tree.listing(place):
            if not version.startswith("python"):
                continue
            for part in _PYTHON_PARTS:
                yield from _installed(tree, f"{place}/{version}/{part}")


def _installed(tree: Tree, place: str) -> Iterator[Package]:
    for name in tree.listing(place):
        if name.endswith(".dist-info"):
            path = f"{place}/{name}/METADATA"
        elif name.endswith(".egg-info"):
            path = f"{place}/{name}/PKG-INFO"
            # A file in older ones.
            path = path if tree.listing(f"{place}/{name}") else f"{place}/{name}"
        else:
            continue
        text = tree.read(path, _MAX_METADATA).decode("utf-8", "replace")
        fields = HeaderParser().parsestr(text, headersonly=True)
        if fields.get("Name") and fields.get("Version"):
            yield Package(
                kind="pypi",
                name=str(fields["Name"]),
                version=str(fields["Version"]),
                license=str(fields.get("License-Expression") or fields.get("License") or ""),
                homepage=str(fields.get("Home-page") or ""),
            )


_READERS: tuple[Callable[[Tree], Iterator[Package]], ...] = (_dpkg, _apk, _python)
