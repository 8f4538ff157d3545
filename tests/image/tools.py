"""Files of Debian's packages that need not be installed, for tests beside other tools."""

import functools

import pytest

from ringzero.errors import RingzeroError
from ringzero.image import archives, deb


@functools.cache
def packaged(package, path):
    """Return a file of a package; skips the test where it cannot be had."""
    try:
        archive = archives.debian()
        (place,) = archive.download(archive.resolve([package], dependencies=False))
    except RingzeroError as fault:
        pytest.skip(f"needs the package {package}: {fault.message}")
    for info, data in deb.files(place):
        if info.name.removeprefix("./") == path:
            return data
    raise AssertionError(f"{package} holds no {path}")
