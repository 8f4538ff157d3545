"""Files of Debian's packages that need not be installed, for tests beside other tools."""

import functools

import pytest

from ringzero.errors import RingzeroError
from ringzero.image import archives, deb


@functools.cache
def packaged(package, path):
    """Return a file of a package; skips the test where it cannot be had."""
    for name, data in _files(package):
        if name == path:
            return data
    raise AssertionError(f"{package} holds no {path}")


def files_of(package):
    """Return the files of a package by path; skips the test where it cannot be had."""
    return dict(_files(package))


def _files(package):
    try:
        archive = archives.debian()
        (place,) = archive.download(archive.resolve([package], dependencies=False))
    except RingzeroError as fault:
        pytest.skip(f"needs the package {package}: {fault.message}")
    for info, data in deb.files(place):
        if info.isreg():
            yield info.name.removeprefix("./"), data
