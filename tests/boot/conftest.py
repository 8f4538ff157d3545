"""The default image, once for all tests that boot it."""

import pytest

from ringzero.errors import HostError
from ringzero.image.micro import ensure


@pytest.fixture(scope="session")
def image():
    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
