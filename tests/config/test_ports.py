"""Ports as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.config.devices.net import NetConfig, publish
from ringzero.config.machine import MachineConfig
from ringzero.config.ports import Forward, parse_ports
from ringzero.config.tree import config_from_tree, config_to_tree
from ringzero.errors import ConfigError, InvalidValueError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8080:80", [Forward(8080, 80)]),
        ("80", [Forward(0, 80)]),
        ("0:22", [Forward(0, 22)]),
        (":22", [Forward(0, 22)]),
        ("53:5353/udp", [Forward(53, 5353, protocol="udp")]),
        ("0.0.0.0:1:2/tcp", [Forward(1, 2, "0.0.0.0")]),
        ("[::1]:1:2", [Forward(1, 2, "::1")]),
        ("10-12:20-22", [Forward(10, 20), Forward(11, 21), Forward(12, 22)]),
        ("0:20-21/udp", [Forward(0, 20, protocol="udp"), Forward(0, 21, protocol="udp")]),
    ],
)
def test_spellings(text, found):
    assert parse_ports(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "80:", "1:0", "65536:1", "1:65536", "1-2:1-3", "3-1:3-1", "1:2/sctp", "1:2:3:4"),
        *("::1:1:2", "1-600:1-600", "1.2.3:1:2", "99999999:1", "-1:2", "1:2 3"),
    ],
)
def test_nonsense_is_refused_with_a_word_on_what_to_write(text):
    with pytest.raises(InvalidValueError) as caught:
        parse_ports(text)
    assert caught.value.hint


@given(st.text(max_size=40) | st.from_regex(r"[0-9:\[\]./a-z-]{1,30}", fullmatch=True))
def test_any_text_is_ports_or_refused(text):
    try:
        found = parse_ports(text)
    except InvalidValueError:
        return
    assert found and all(not forward.faults() for forward in found)


def test_ports_are_the_first_network_s_that_can():
    nets = [NetConfig("none"), NetConfig("lan"), NetConfig("user")]
    assert [len(net.ports) for net in publish(nets, [Forward(1, 2)])] == [0, 1, 0]
    assert publish([], [Forward(1, 2)]) == [NetConfig("user", ports=(Forward(1, 2),))]
    with pytest.raises(InvalidValueError, match="this machine is on none"):
        publish([NetConfig("none")], [Forward(1, 2)])


def test_a_net_s_options_survive():
    text = "user,host=no,allow=example.org:443,allow=10.0.0.0/8,port=8080:80,port=0:53/udp"
    net = NetConfig.parse(text)
    assert net.allow == ("example.org:443", "10.0.0.0/8")
    assert net.ports == (Forward(8080, 80), Forward(0, 53, protocol="udp"))
    assert not net.host
    assert NetConfig.parse("user,restrict").allow == ()
    config = MachineConfig.create(net=net)
    assert config_from_tree(config_to_tree(config)) == config


@pytest.mark.parametrize(
    ("nets", "fault"),
    [
        (["none,port=1:2"], "not ringzero's to route"),
        (["socket=/x,host=no"], "not ringzero's to route"),
        (["user,port=7:1", "lan,port=7:2"], "port 7/tcp of 127.0.0.1 is forwarded twice"),
    ],
)
def test_faults(nets, fault):
    with pytest.raises(ConfigError, match=fault):
        MachineConfig.create(nets=nets)


def test_a_copy_gets_ports_of_its_own():
    class Copy:
        net, name, vsock, cid = None, "copy", None, 3

        def mac_of(self, number):
            return "02:00:00:00:00:09"

    net = NetConfig.parse("user,port=8080:80").renew(0, Copy())
    assert net.ports == (Forward(0, 80),)
