import pytest

from ringzero.config.devices.net import SETUPS, NetConfig
from ringzero.config.machine import MachineConfig
from ringzero.vm.guest.identity import Identity

LISTENS = NetConfig("socket", "/a", listen=True, mac="02:00:00:00:00:01")


def test_addresses_are_made_where_they_were_left_open():
    config = MachineConfig(devices=(NetConfig(), LISTENS, NetConfig()))
    identity = Identity(mac="02:00:00:00:01:00")
    macs = [net.mac for net in identity.complete(config).nets]
    assert macs == ["02:00:00:00:01:00", "02:00:00:00:00:01", "02:00:00:00:01:02"]


def test_a_copy_has_other_addresses_and_never_listens():
    config = MachineConfig(devices=(LISTENS, NetConfig("socket", "/b", mac="02:00:00:00:00:02")))
    first, second = Identity(mac="02:00:00:00:01:ff").adopt(config).nets
    assert first == NetConfig("socket", "/a", mac="02:00:00:00:01:ff")
    assert second == NetConfig("socket", "/b", mac="02:00:00:00:02:00")


@pytest.mark.parametrize("given", [NetConfig("none"), NetConfig("none", mac="02:00:00:00:00:09")])
def test_a_copy_may_be_given_its_first_network(given):
    config = MachineConfig(devices=(LISTENS, NetConfig("socket", "/b")))
    identity = Identity(net=given)
    first, second = identity.adopt(config).nets
    assert first == NetConfig("none", mac=given.mac or identity.mac)
    assert second.target == "/b"


def test_a_guest_sets_an_interface_up_as_the_network_wants_unless_it_is_told():
    assert NetConfig("user").guest_setup(0) == "static"
    assert NetConfig("user").guest_setup(1) == NetConfig("lan").guest_setup(0) == "dhcp"
    assert NetConfig("tap", "tap0").guest_setup(0) == "later"
    for setup in SETUPS:
        assert NetConfig("none", setup=setup).guest_setup(0) == setup
        assert not NetConfig("none", setup=setup).faults()
    (fault,) = NetConfig("none", setup="always").faults()
    assert "always" in fault and "later" in fault
