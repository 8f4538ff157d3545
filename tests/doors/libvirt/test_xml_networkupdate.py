"""One element of a network put in, taken out, or changed."""

import pytest

from ringzero.doors.libvirt.constants import NetworkSection, NetworkUpdate
from ringzero.doors.libvirt.xml.network import NETWORK
from ringzero.doors.libvirt.xml.networkupdate import updated
from ringzero.errors import ConfigError, ConflictError, InvalidValueError

LAN = NETWORK.parse(
    "<network><name>lan</name><dns><host ip='10.1.0.9'><hostname>ns</hostname></host></dns>"
    "<ip address='10.1.0.1' prefix='24'><dhcp><range start='10.1.0.10' end='10.1.0.20'/>"
    "<host mac='52:54:00:00:00:01' name='one' ip='10.1.0.11'/></dhcp></ip></network>"
)
HOST, RANGE = NetworkSection.IP_DHCP_HOST, NetworkSection.IP_DHCP_RANGE
DNS = NetworkSection.DNS_HOST
ADD, FIRST = NetworkUpdate.ADD_LAST, NetworkUpdate.ADD_FIRST
MODIFY, DELETE = NetworkUpdate.MODIFY, NetworkUpdate.DELETE


def hosts(network):
    return [(host.mac, host.name, host.ip) for host in network.ips[0].hosts]


def test_hosts_of_dhcp():
    two = "<host mac='52:54:00:00:00:02' ip='10.1.0.12'/>"
    one = ("52:54:00:00:00:01", "one", "10.1.0.11")
    new = ("52:54:00:00:00:02", None, "10.1.0.12")
    assert hosts(updated(LAN, ADD, HOST, -1, two)) == [one, new]
    assert hosts(updated(LAN, FIRST, HOST, 0, two)) == [new, one]
    other = "<host mac='52:54:00:00:00:01' ip='10.1.0.15'/>"
    assert hosts(updated(LAN, MODIFY, HOST, -1, other)) == [
        ("52:54:00:00:00:01", None, "10.1.0.15")
    ]
    assert hosts(updated(LAN, MODIFY, HOST, -1, "<host name='one' ip='10.1.0.16'/>")) == [
        (None, "one", "10.1.0.16")
    ]
    assert hosts(updated(LAN, DELETE, HOST, -1, "<host mac='52:54:00:00:00:01'/>")) == []
    # What else there is stays.
    assert updated(LAN, ADD, HOST, -1, two).dns_hosts == LAN.dns_hosts


def test_ranges_and_names():
    span = "<range start='10.1.0.30' end='10.1.0.40'/>"
    (old,) = LAN.ips[0].ranges
    assert [r.start for r in updated(LAN, ADD, RANGE, -1, span).ips[0].ranges] == [
        *("10.1.0.10", "10.1.0.30")
    ]
    old = f"<range start='{old.start}' end='{old.end}'/>"
    assert updated(LAN, DELETE, RANGE, -1, old).ips[0].ranges == ()
    name = "<host ip='10.1.0.8'><hostname>www</hostname></host>"
    assert [h.ip for h in updated(LAN, FIRST, DNS, -1, name).dns_hosts] == ["10.1.0.8", "10.1.0.9"]
    assert updated(LAN, DELETE, DNS, -1, "<host ip='10.1.0.9'/>").dns_hosts == ()


@pytest.mark.parametrize(
    ("command", "section", "parent", "document", "fault"),
    [
        (ADD, HOST, -1, "<host mac='52:54:00:00:00:01' ip='10.1.0.99'/>", ConflictError),
        (ADD, HOST, -1, "<host mac='52:54:00:00:00:09' ip='10.1.0.11'/>", ConflictError),
        (ADD, HOST, -1, "<host mac='52:54:00:00:00:09' name='one'/>", ConflictError),
        (ADD, HOST, 1, "<host mac='52:54:00:00:00:09' ip='10.1.0.99'/>", ConflictError),
        (MODIFY, HOST, -1, "<host mac='52:54:00:00:00:09' ip='10.1.0.99'/>", ConflictError),
        (MODIFY, HOST, -1, "<host ip='10.1.0.11'/>", ConflictError),
        (DELETE, HOST, -1, "<host mac='52:54:00:00:00:01' ip='10.1.0.99'/>", ConflictError),
        (DELETE, RANGE, -1, "<range start='10.1.0.1' end='10.1.0.2'/>", ConflictError),
        (ADD, DNS, -1, "<host ip='10.1.0.5'><hostname>ns</hostname></host>", ConflictError),
        (MODIFY, RANGE, -1, "<range start='10.1.0.1' end='10.1.0.2'/>", ConfigError),
        (9, HOST, -1, "<host mac='52:54:00:00:00:09' ip='10.1.0.99'/>", ConfigError),
        (ADD, NetworkSection.PORTGROUP, -1, "<portgroup name='a'/>", ConfigError),
        (ADD, HOST, -1, "<host", InvalidValueError),
        (ADD, HOST, -1, "<range start='10.1.0.1' end='10.1.0.2'/>", InvalidValueError),
    ],
)
def test_what_cannot_be(command, section, parent, document, fault):
    with pytest.raises(fault):
        updated(LAN, command, section, parent, document)
