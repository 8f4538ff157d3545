"""The pytest plugin: a booted machine, forked for each test, whose log is in reports of failures.

pytest loads this with every run, so nothing of ringzero is imported before a fixture is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ringzero.vm.machine import Machine

# Of a guest's log in a report, in bytes; the end tells most.
_SHOWN = 16 * 1024
_LOGS: pytest.StashKey[list[tuple[str, bytearray]]] = pytest.StashKey()


@pytest.fixture(scope="session")
def ringzero_machine_options() -> Mapping[str, Any]:
    """Return the fields of the machine that is booted, as `Machine` takes them; override it."""
    return {"image": "micro", "memory": "256M"}


@pytest.fixture(scope="session")
def ringzero_booted(
    ringzero_machine_options: Mapping[str, Any],
) -> Iterator[tuple[Machine, bytearray]]:
    """Yield a machine whose guest takes commands, and its log: once for all tests.

    Override it to prepare the guest further; tests should run on forks of it alone.
    """
    from ringzero.vm.machine import Machine

    log = bytearray()
    with Machine(**ringzero_machine_options) as machine:
        machine.serial.on_output = log.extend
        machine.run("true", check=True)
        yield machine, log


@pytest.fixture
def ringzero_machine(
    request: pytest.FixtureRequest, ringzero_booted: tuple[Machine, bytearray]
) -> Iterator[Machine]:
    """Yield a running copy of the booted machine, for this test alone."""
    origin, booted = ringzero_booted
    log = bytearray(booted)
    request.node.stash.setdefault(_LOGS, []).append(("guest's log", log))
    (machine,) = origin.fork()
    try:
        machine.serial.on_output = log.extend
        machine.start()
        yield machine
    finally:
        machine.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the log of a test's guest into the report of its failure."""
    report = yield
    if report.failed:
        for title, log in item.stash.get(_LOGS, []):
            # Queries that a terminal would answer are no part of what there is to read.
            text = bytes(log[-_SHOWN:]).decode(errors="replace")
            shown = "".join(c for c in text if c.isprintable() or c in "\n\t")
            report.sections.append((f"{title} ({report.when})", shown))
    return report
