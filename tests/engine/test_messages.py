"""Interrupt messages find their way through ioctls and irqfds: against a KVM that keeps a list."""

import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.engine.kvm.messages import Messages, is_immediate
from ringzero.host.kvm import abi as kvm

PINS = 24
TO_FIRST = 0xFEE00000
EDGE, LEVEL = 0x4000, 0xC000


class ListingKvm:
    """Stands for a VM's descriptor; `take` returns the messages that came since the last call."""

    def __init__(self, refused=()):
        self.refused = refused
        self.routes, self.irqfds, self.signalled = {}, {}, []
        self.route_writes = 0

    def pass_struct(self, number, msi):
        assert number == kvm.SIGNAL_MSI
        message = (msi.address_lo | msi.address_hi << 32, msi.data)
        if message in self.refused:
            raise OSError(errno.EINVAL, "no such thing")
        self.signalled.append(message)
        return int(message[0] >> 12 & 0xFF != 0x77)

    def set(self, number, value):
        if number == kvm.SET_GSI_ROUTING:
            self.drain()
            self.route_writes += 1
            self.routes = {
                entry.gsi: (entry.u.msi.address_lo | entry.u.msi.address_hi << 32, entry.u.msi.data)
                for entry in value.entries
            }
            assert len(self.routes) == value.header.nr
        else:
            assert number == kvm.IRQFD
            self.irqfds[value.fd] = value.gsi

    def drain(self):
        """Deliver what is in the event descriptors by the routes of this moment."""
        for descriptor, gsi in self.irqfds.items():
            try:
                count = os.eventfd_read(descriptor)
            except BlockingIOError:
                continue
            self.signalled += [self.routes[gsi]] * count

    def take(self):
        self.drain()
        found, self.signalled = self.signalled, []
        return found


@pytest.fixture
def vm():
    return ListingKvm()


@pytest.fixture
def messages(vm):
    made = Messages(vm, PINS, irqfds=True)
    yield made
    made.close()


def test_what_was_taken_goes_by_irqfd_from_then_on(vm, messages):
    for _ in range(3):
        assert messages.send(TO_FIRST, EDGE | 0x41)
        assert vm.take() == [(TO_FIRST, EDGE | 0x41)]
    assert list(vm.irqfds.values()) == [PINS]


def test_what_nobody_takes_gets_no_irqfd(vm, messages):
    nobody = TO_FIRST | 0x77 << 12
    for _ in range(2):
        assert not messages.send(nobody, EDGE | 0x41)
    assert not vm.irqfds


def test_a_message_without_sense_is_not_taken(messages, vm):
    vm.refused = [(TO_FIRST, 0x4741)]
    assert not messages.send(TO_FIRST, 0x4741)


def test_without_irqfds(vm):
    messages = Messages(vm, PINS, irqfds=False)
    for _ in range(2):
        assert messages.send(TO_FIRST, EDGE | 0x41)
    assert not vm.irqfds
    assert len(vm.take()) == 2


def test_level_triggered_ones_are_listed_under_pins(vm, messages):
    for vector in (0x31, 0x32, 0x31):
        assert messages.send(TO_FIRST, LEVEL | vector)
    assert vm.routes == {0: (TO_FIRST, LEVEL | 0x31), 1: (TO_FIRST, LEVEL | 0x32)}
    for vector in range(0x40, 0x40 + 2 * PINS):
        messages.send(TO_FIRST, LEVEL | vector)
    assert set(vm.routes) == set(range(PINS))
    assert not vm.irqfds


def test_out_of_descriptors(vm, messages, monkeypatch):
    assert messages.send(TO_FIRST, EDGE | 0x41)

    def none_left(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "eventfd", none_left)
    for vector in (0x42, 0x43, 0x42, 0x41):
        assert messages.send(TO_FIRST, EDGE | vector)
        assert vm.take()[-1] == (TO_FIRST, EDGE | vector)


def test_a_closed_one_sends_nothing(vm):
    messages = Messages(vm, PINS, irqfds=True)
    messages.send(TO_FIRST, EDGE | 0x41)
    messages.close()
    vm.irqfds.clear()
    assert not messages.send(TO_FIRST, EDGE | 0x41)
    assert not messages.send(TO_FIRST, LEVEL | 0x41)
    messages.close()


@pytest.mark.parametrize(
    ("address", "data", "immediate"),
    [
        (TO_FIRST, EDGE | 0x41, True),
        (TO_FIRST | 3 << 12, 0x41, True),
        (TO_FIRST | 0xFF << 12, EDGE | 0x41, False),
        (TO_FIRST | 1 << 2, EDGE | 0x41, False),
        (TO_FIRST | 1 << 3, EDGE | 0x41, False),
        (TO_FIRST, LEVEL | 0x41, False),
        (TO_FIRST, EDGE | 1 << 8 | 0x41, False),
        (TO_FIRST, EDGE | 4 << 8, False),
    ],
)
def test_which_are_handed_over_at_once(address, data, immediate):
    assert is_immediate((address, data)) is immediate


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 0x77, 0xFF]),
            st.sampled_from([0, 4]),
            st.integers(0x20, 0x3F),
            st.sampled_from([EDGE, LEVEL, EDGE | 0x100]),
        ),
        max_size=120,
    )
)
def test_each_arrives_once_and_in_order(sent):
    vm = ListingKvm()
    messages = Messages(vm, PINS, irqfds=True)
    try:
        for destination, logical, vector, kind in sent:
            address, data = TO_FIRST | destination << 12 | logical, kind | vector
            assert messages.send(address, data) == (destination != 0x77)
            assert vm.take() == [(address, data)]
        assert len(vm.irqfds) <= PINS
    finally:
        messages.close()
