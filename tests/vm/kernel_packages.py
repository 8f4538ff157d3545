"""Debian's packages with what modules for its kernels are made of."""

from __future__ import annotations

from pathlib import Path

from ringzero.image import archives, deb


def unpack_headers(release: str, where: Path) -> None:
    """Unpack what a module for the kernel `release` of Debian's is built with."""
    flavour = release.rpartition("-")[2]
    base = release.removesuffix(f"-cloud-{flavour}")
    version = version_of(release)
    names = [f"linux-headers-{release}", f"linux-headers-{base}-common", f"linux-kbuild-{version}"]
    archive = archives.debian()
    for path in archive.download(archive.resolve(names, dependencies=False)):
        for info, data in deb.files(path):
            target = where / info.name.removeprefix("./")
            target.parent.mkdir(parents=True, exist_ok=True)
            if info.issym():
                target.symlink_to(info.linkname)
            elif info.isreg():
                target.write_bytes(data)
                target.chmod(info.mode & 0o777)


def unpack_source(release: str, where: Path) -> Path:
    """Unpack the archive with the source of the kernel `release`; return it, compressed."""
    archive = archives.debian()
    name = f"linux-source-{version_of(release)}"
    for path in archive.download(archive.resolve([name], dependencies=False)):
        for info, data in deb.files(path):
            if info.isreg() and info.name.endswith(".tar.xz"):
                target = where / Path(info.name).name
                target.write_bytes(data)
                return target
    raise LookupError(f"{name} holds no source")


def version_of(release: str) -> str:
    """Return the version of Linux that a release is of: 6.1 of 6.1.0-57-cloud-amd64."""
    return ".".join(release.split(".")[:2])
