"""Every test of a device runs twice: as it is, and on a device that is restored all the time.

Before each access of the guest the device is paused, saved as JSON, made what it was when it was
built, restored and resumed, as in a machine that is snapshotted and reverted in the middle of
everything. (A fork's device is a new object besides: `test_contract.py`, `tests/vm`.)
"""

import functools
import json
import threading

import pytest

from ringzero.core.state import from_tree, to_tree
from ringzero.devices.contract import DEVICES
from ringzero.devices.virtio.mmio import VirtioMmio

AGAIN = {
    f"tests.devices.{name}"
    for name in (
        *("test_serial", "test_rtc", "test_ioapic", "test_lapic", "test_kvmclock", "test_small"),
        *("test_vmgenid", "virtio.test_block", "virtio.test_console", "virtio.test_mmio"),
        "virtio.test_rng",
    )
}
# About what pausing ends, or what only the machine that it befell knows.
ONCE = {
    "test_reset_in_mid_request_leaves_memory_alone",
    "test_pause_finishes_what_is_in_flight",
    "test_queue_fault_needs_reset_and_recovers",
}
ACCESSES = ("read", "write", "read_msr", "write_msr")


def pytest_generate_tests(metafunc):
    if metafunc.module.__name__ in AGAIN and metafunc.function.__name__ not in ONCE:
        metafunc.parametrize("hops", [False, True], ids=["as-it-is", "restored"], indirect=True)


@pytest.fixture(autouse=True)
def hops(request, monkeypatch):
    """Have devices restored before each access, if the parameter is true."""
    if getattr(request, "param", False):
        for _, kind in DEVICES:
            _relay(monkeypatch, kind, lambda device: [device])
        _relay(monkeypatch, VirtioMmio, lambda mmio: [mmio, mmio.device])


def _relay(monkeypatch, kind, parts_of):
    build = kind.__init__
    inside = threading.local()

    @functools.wraps(build)
    def init(self, *arguments, **named):
        build(self, *arguments, **named)
        self.blank = [part.save() for part in parts_of(self)]

    def hop(self):
        if getattr(inside, "busy", False):
            return
        inside.busy = True
        try:
            self.pause()
            parts = parts_of(self)
            trees = [json.loads(json.dumps(to_tree(part.save()))) for part in parts]
            for part, state in zip(parts, self.blank, strict=True):
                part.restore(state)
            for part, tree in zip(parts, trees, strict=True):
                part.restore(from_tree(part.state_type, tree))
            self.resume()
        finally:
            inside.busy = False

    def after_hop(act):
        @functools.wraps(act)
        def access(self, *arguments):
            hop(self)
            return act(self, *arguments)

        return access

    monkeypatch.setattr(kind, "__init__", init)
    for name in ACCESSES:
        if hasattr(kind, name):
            monkeypatch.setattr(kind, name, after_hop(getattr(kind, name)))
