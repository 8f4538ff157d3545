"""Networks: from XML to the action's arguments, and back from what the host says."""

import pytest

from ringzero.api import table
from ringzero.doors.libvirt.xml.network import NETWORK, definition, network
from ringzero.errors import ConfigError
from ringzero.net.named.description import NamedNetwork
from tests.doors.libvirt.documents import DOCUMENTS, of_kind, validate

UUID = "015d9b27-2460-498f-b445-0534630c8fa7"


def xml(body="", forward="<forward mode='nat'/>"):
    return NETWORK.parse(f"<network><name>lan</name>{forward}{body}</network>")


def described(found):
    """Return the record that the `create_network` action makes of the arguments."""
    fields = table.get("create_network").check(found.fields)
    first, _, last = fields.pop("range", "").partition("-")
    fixed = dict(lease.split("=") for lease in fields.pop("leases", ()))
    made = NamedNetwork(**fields, first=first, last=last, fixed=fixed)
    made.check()
    return made


@pytest.mark.parametrize("name", of_kind("network"))
def test_networks_of_real_clients(name):
    sent = NETWORK.parse(DOCUMENTS[name])
    made = described(definition(sent))
    assert (made.name, made.mode) == (sent.name, "nat")


def test_a_range_with_the_gateway_in_it():
    found = definition(NETWORK.parse(DOCUMENTS["vagrant-network"]))
    assert found.fields == {
        "name": "vagrant-libvirt",
        "mode": "nat",
        "subnet": "192.168.121.0/24",
        "range": "192.168.121.3-192.168.121.254",
    }
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("forward", "mode"),
    [
        ("", "isolated"),
        ("<forward/>", "isolated"),
        ("<forward mode='nat'/>", "nat"),
        ("<forward mode='open'/>", "open"),
        ("<forward mode='route'/>", "open"),
    ],
)
def test_modes(forward, mode):
    assert definition(xml(forward=forward)).fields == {"name": "lan", "mode": mode}


def test_fixed_addresses():
    found = definition(
        xml(
            "<ip address='10.1.2.1' prefix='24'><dhcp><range start='10.1.2.10' end='10.1.2.20'/>"
            "<host mac='52:54:00:00:00:01' name='web' ip='10.1.2.5'/></dhcp></ip>"
        )
    )
    assert found.fields["leases"] == ["52:54:00:00:00:01=10.1.2.5"]
    assert described(found).fixed == {"52:54:00:00:00:01": "10.1.2.5"}
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("warned", "body"),
    [
        ("the gateway is 10.1.2.1", "<ip address='10.1.2.9' prefix='24'><dhcp><range "
         "start='10.1.2.20' end='10.1.2.30'/></dhcp></ip>"),
        ("addresses are given out", "<ip address='10.1.2.1' prefix='24'/>"),
        ("one subnet", "<ip family='ipv6' address='fd00::1' prefix='64'/>"),
        ("first range", "<ip address='10.1.2.1' prefix='24'><dhcp><range start='10.1.2.3' "
         "end='10.1.2.4'/><range start='10.1.2.5' end='10.1.2.6'/></dhcp></ip>"),
        ("one without a MAC", "<ip address='10.1.2.1' prefix='24'><dhcp><host name='a' "
         "ip='10.1.2.5'/></dhcp></ip>"),
        ("dns/host", "<dns><host ip='10.1.2.5'><hostname>a</hostname></host></dns>"),
        ("bandwidth", "<bandwidth><inbound average='1'/></bandwidth>"),
        ("mtu", "<mtu size='9000'/>"),
    ],
)  # fmt: skip
def test_what_is_not_carried_out_is_told(warned, body):
    warnings = definition(xml(body)).warnings
    assert any(warned in warning for warning in warnings), warnings


@pytest.mark.parametrize(
    "body",
    [
        "<ip address='10.1.2'/>",
        "<ip address='10.1.2.1' netmask='255.0.255.0'/>",
        "<ip address='10.1.2.1' prefix='99'/>",
        "<ip address='10.1.2.1' prefix='31'/>",
        "<ip address='10.1.2.1' prefix='24'><dhcp><range start='a' end='b'/></dhcp></ip>",
        "<ip address='10.1.2.1' prefix='24'><dhcp><range start='10.1.2.1' end='10.1.2.2'/></dhcp>"
        "</ip>",
    ],
)
def test_what_cannot_be_is_refused(body):
    with pytest.raises(ConfigError):
        definition(xml(body))


def test_bridges_are_joined_another_way():
    with pytest.raises(ConfigError) as caught:
        definition(xml(forward="<forward mode='bridge'/>"))
    assert "bridge" in caught.value.hint


def summary(**changes):
    return {
        "name": "lan",
        "mode": "nat",
        "subnet": "10.1.2.0/24",
        "gateway": "10.1.2.1",
        "first": "10.1.2.3",
        "last": "10.1.2.254",
        "fixed": {"52:54:00:00:00:01": "10.1.2.5"},
        "host": True,
        "allow": None,
        "leases": {"52:54:00:00:00:01": {"address": "10.1.2.5", "name": "web"}},
        "machines": [{}],
        "directory": "/run/lan",
        "notes": [],
        **changes,
    }


def test_a_network_as_it_is():
    told = network(summary(), UUID)
    assert (told.forward, told.connections, told.uuid) == ("nat", 1, UUID)
    assert told.ips[0].hosts[0].name == "web"
    again = definition(NETWORK.parse(NETWORK.render(told)))
    assert again.fields == {
        "name": "lan",
        "mode": "nat",
        "subnet": "10.1.2.0/24",
        "range": "10.1.2.3-10.1.2.254",
        "leases": ["52:54:00:00:00:01=10.1.2.5"],
    }
    assert network(summary(mode="isolated", machines=[]), UUID).forward is None


def test_a_network_as_it_was_sent():
    sent = NETWORK.parse(DOCUMENTS["vagrant-network"])
    told = network(summary(name="vagrant-libvirt", fixed={}), UUID, sent)
    assert (told.bridge, told.ipv6, told.ips) == ("virbr1", True, sent.ips)
    routed = xml(forward="<forward mode='route'/>")
    assert network(summary(mode="open"), UUID, routed).forward == "route"


def test_hosts_that_another_door_has_changed():
    ip = "<ip address='10.1.2.1' prefix='24'><dhcp><host mac='{}' ip='10.1.2.9'/></dhcp></ip>"
    told = network(summary(), UUID, xml(ip.format("52:54:00:00:00:09")))
    assert [(host.mac, host.ip) for host in told.ips[0].hosts] == [*summary()["fixed"].items()]


@pytest.mark.peer
def test_what_is_told_is_valid(tmp_path):
    sent = NETWORK.parse(DOCUMENTS["vagrant-network"])
    told = [network(summary(mode=mode), UUID) for mode in ("nat", "isolated", "open")]
    told.append(network(summary(name="vagrant-libvirt"), UUID, sent))
    validate(tmp_path, [NETWORK.render(item) for item in told])
