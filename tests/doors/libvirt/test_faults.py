"""Errors on the wire, as libvirtd sends them."""

from ringzero.doors.libvirt.faults import Error, ErrorCode, ErrorDomain
from ringzero.doors.libvirt.values import DomainHandle
from ringzero.doors.libvirt.wire import PacketStatus
from tests.doors.libvirt.recordings import packets


def test_real_errors_come_back():
    errors = [
        (name, packet)
        for name, packet in packets()
        if packet.status is PacketStatus.ERROR and packet.body
    ]
    assert len(errors) > 15
    for name, packet in errors:
        assert Error.decode(packet.body).encode() == packet.body, name


def test_an_error_as_libvirt_says_it():
    """`virsh dominfo` of a domain that is not there: code and domain, message in three parts."""
    found = [
        Error.decode(packet.body)
        for _, packet in packets()
        if packet.procedure == 23 and packet.status is PacketStatus.ERROR
    ]
    assert found
    error = found[0]
    assert (error.code, error.domain) == (ErrorCode.NO_DOMAIN, ErrorDomain.QEMU)
    assert error.message.startswith("Domain not found")


def test_an_error_with_everything_comes_back():
    machine = DomainHandle("web", bytes(16), 3)
    error = Error(1, 2, "m", 2, machine, "a", "b", "c", 4, -5, None)
    assert Error.decode(error.encode()) == error


def test_a_message_is_cut_before_it_is_too_long():
    sent = Error.decode(Error(1, 2, "x" * (5 << 20)).encode())
    assert len(sent.message) < 17 << 10
