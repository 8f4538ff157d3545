"""Fixtures that every part of the suite may use."""

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.chance import FUZZ

# Shared machines stall: how long one example takes says nothing of the code.
settings.register_profile(
    "ringzero",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=FUZZ == 1,
)
settings.load_profile("ringzero")

# Guests boot: what one has left behind is for the tests of templates, which say so.
os.environ["RINGZERO_TEMPLATES"] = "0"
# Nobody's pool serves them; those of pools have their own.
os.environ["RINGZERO_POOL_DIR"] = "/nonexistent/pools"


@pytest.fixture
def kvm_system():
    """An open /dev/kvm; skips where it does not open."""
    from ringzero.host.kvm.fd import KvmSystem

    try:
        system = KvmSystem()
    except OSError as fault:
        pytest.skip(f"/dev/kvm: {fault.strerror}")
    yield system
    system.close()
