"""Runs the hand-written guests under both run loops, and closes them."""

import pytest

from tests.isa.guest import Guest

BOTH = (
    "test_exceptions", "test_protected", "test_system", "test_debug", "test_syscalls",
    "test_fuzz_system", "test_alignment", "test_branches", "test_limits", "test_waiting",
    "test_rflags",
)  # fmt: skip


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__.rpartition(".")[2] in BOTH:
        metafunc.fixturenames.insert(0, "entry")
        metafunc.parametrize("entry", ("run_interpreter", "run_translator"), indirect=True)


@pytest.fixture
def entry(request, monkeypatch):
    monkeypatch.setattr(Guest, "entry", request.param)


@pytest.fixture(autouse=True)
def close_guests():
    before = len(Guest.alive)
    yield
    for guest in Guest.alive[before:]:
        guest.close()
    del Guest.alive[before:]
