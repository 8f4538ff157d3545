"""The executors as fixtures."""

import pytest

from tests.oracle.isolate import Isolated
from tests.oracle.native import Native, native_available


@pytest.fixture(scope="session")
def native():
    """The host CPU."""
    if not native_available():
        pytest.skip("the host is not x86-64 Linux with FSGSBASE")
    with Native() as executor:
        yield executor


@pytest.fixture(scope="session")
def unicorn():
    """Unicorn in a child process."""
    peer = pytest.importorskip("tests.oracle.unicorn_peer")
    with Isolated(peer.Unicorn, "unicorn") as executor:
        yield executor
