"""A test suite on real guests: `pip install ringzero pytest`, then `pytest test_guest.py`.

The guest boots once; each test that takes `ringzero_machine` has a fork of it for itself.
When a test fails, pytest's report has the guest's log.
"""

from typing import Any

import pytest

from ringzero import Machine


@pytest.fixture(scope="session")
def ringzero_machine_options() -> dict[str, Any]:
    return {"image": "micro", "memory": "128M"}


def test_there_is_a_real_kernel(ringzero_machine: Machine) -> None:
    assert ringzero_machine.run("uname -s", text=True, check=True).stdout == "Linux\n"


def test_whatever_a_test_breaks(ringzero_machine: Machine) -> None:
    ringzero_machine.run("echo broken > /etc/state; rm -r /etc/passwd", check=True)


def test_the_next_one_does_not_see(ringzero_machine: Machine) -> None:
    assert ringzero_machine.run("test ! -e /etc/state").exit_code == 0
