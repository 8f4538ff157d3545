"""Networks by name as directories: made, refused, listed, removed."""

import ipaddress
import shutil
import subprocess
import sys

import pytest

from ringzero.errors import ConfigError, ConflictError, NotFoundError, StateError
from ringzero.net.named import directory
from ringzero.net.named.description import RESERVED, NamedNetwork, NetworkNotes
from ringzero.records import replace
from tests.killed import killed_at


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_NETWORKS_DIR", str(tmp_path / "networks"))
    monkeypatch.setattr(directory, "host_routes", lambda: iter(()))
    return tmp_path / "networks"


def test_life():
    made, notes = directory.create(NamedNetwork("lan"))
    assert not notes and not made.alive
    assert directory.find("lan").network().subnet == "10.89.0.0/24"
    assert [place.name for place in directory.networks()] == ["lan"]
    made.write_leases({"02:00:00:00:00:01": {"address": "10.89.0.9", "name": "a"}})
    assert made.leases()["02:00:00:00:00:01"]["address"] == "10.89.0.9"
    made.remove()
    assert directory.networks() == []
    with pytest.raises(NotFoundError):
        made.remove()


def test_who_gets_which_address_changes():
    made, _ = directory.create(NamedNetwork("lan"))
    network = made.network()
    made.write_network(replace(network, fixed={"02:00:00:00:00:01": "10.89.0.9"}))
    assert made.network().fixed == {"02:00:00:00:00:01": "10.89.0.9"}
    with pytest.raises(ConfigError, match="none of the machines' addresses"):
        made.write_network(replace(network, first="10.90.0.9"))
    with pytest.raises(ConflictError, match="keeps its subnet"):
        made.write_network(replace(network, subnet="10.90.0.0/24"))
    assert made.network().subnet == network.subnet


def test_subnets_do_not_overlap(monkeypatch):
    route = ipaddress.IPv4Network("10.89.0.0/24")
    monkeypatch.setattr(directory, "host_routes", lambda: iter([route]))
    one, _ = directory.create(NamedNetwork("one"))
    two, _ = directory.create(NamedNetwork("two"))
    assert [p.network().subnet for p in (one, two)] == ["10.89.1.0/24", "10.89.2.0/24"]
    with pytest.raises(ConflictError, match=r"overlaps 10\.89\.1\.0/24 of the network 'one'"):
        directory.create(NamedNetwork("three", subnet="10.89.0.0/16"))
    _, notes = directory.create(NamedNetwork("four", subnet="10.89.0.0/25"))
    assert "the host has a route to 10.89.0.0/24" in notes[0]


def test_a_name_is_taken_once():
    directory.create(NamedNetwork("lan", subnet="10.1.0.0/24"))
    with pytest.raises(ConflictError, match="already"):
        directory.create(NamedNetwork("lan", subnet="10.2.0.0/24"))
    assert len(directory.networks()) == 1


@pytest.mark.parametrize("name", [*RESERVED, "", "../x", "a b", ".hidden", "x" * 64])
def test_names_that_cannot_be(name, place):
    with pytest.raises(ConfigError, match="cannot be called"):
        directory.create(NamedNetwork(name))
    with pytest.raises(NotFoundError):
        directory.find(name or "..")
    assert not place.exists()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"mode": "bridge"}, "no kind of network"),
        ({"subnet": "10.0.0.1/24"}, "host bits set"),
        ({"subnet": "fd00::/64"}, "subnet"),
        ({"subnet": "10.0.0.0/30"}, "a /8 to a /29"),
        ({"first": "10.9.0.1"}, "none of the machines' addresses"),
        ({"first": "x"}, "DHCP range"),
        ({"first": "10.89.0.9", "last": "10.89.0.8"}, "is empty"),
        ({"fixed": {"01:00:00:00:00:00": "10.89.0.9"}}, "no MAC address"),
        ({"fixed": {"02:00:00:00:00:00": "10.89.0.1"}}, "none of the machines' addresses"),
        (
            {"fixed": {f"02:00:00:00:00:0{n}": "10.89.0.9" for n in (1, 2)}},
            "is the lease of 02:00:00:00:00:01 and of 02:00:00:00:00:02",
        ),
        ({"allow": ("a:b",)}, "no place is called"),
    ],
)
def test_faults(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        directory.create(NamedNetwork("lan", **fields))
    assert directory.networks() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1}', '{"name": "lan", "mac": 2}'])
def test_a_description_that_is_none(text):
    made, _ = directory.create(NamedNetwork("lan"))
    (made.path / directory.DESCRIPTION).write_text(text)
    with pytest.raises(StateError, match="is not readable as"):
        made.network()
    (made.path / directory.LEASES).write_text(text)
    assert made.leases() == {}
    made.remove()


def test_routes_of_a_host_of_its_own(place):
    """A namespace whose routes are known: what is made there says which are out of reach."""
    code = (
        "from ringzero.net.named import directory as d\n"
        "from ringzero.net.named.description import NamedNetwork as N\n"
        "print(*d.create(N('one', subnet='10.89.3.0/25'))[1])\n"
        "print(d.create(N('two'))[0].network().subnet)"
    )
    routes = 'ip link set lo up && ip route add 10.89.0.0/22 dev lo && exec "$@"'
    command = ["unshare", "-Urn", "sh", "-c", routes, "sh", sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if done.returncode:
        pytest.skip(f"needs namespaces and ip (iproute2): {done.stderr}")
    note, subnet = done.stdout.splitlines()
    assert "10.89.0.0/22: machines on 'one' do not reach it" in note
    assert subnet == "10.89.4.0/24"


def test_host_routes_are_read():
    assert all(route.prefixlen for route in directory.host_routes())


READ_ONLY = """
from ringzero.errors import HostError
from ringzero.net.named import directory
from ringzero.net.named.description import NamedNetwork
for call in (lambda: directory.create(NamedNetwork("two")), directory.find("one").connect):
    try:
        call()
    except HostError as fault:
        print(fault.message, "|", fault.hint)
"""


def test_a_place_that_is_read_only(place):
    directory.create(NamedNetwork("one"))
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", mount, str(place)]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*words, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this user may not make a mount namespace")
    program = [sys.executable, "-c", READ_ONLY]
    said = subprocess.run([*words, *program], capture_output=True, check=True, timeout=60)
    lines = said.stdout.decode().splitlines()
    assert len(lines) == 2, said.stderr
    for line in lines:
        assert "Read-only file system" in line
        assert line.endswith("| set RINGZERO_NETWORKS_DIR to a directory that you can write to")


def test_a_network_becomes_another_with_its_notes_or_stays():
    made, _ = directory.create(NamedNetwork("lan"), NetworkNotes(metadata={"xml": "old"}))
    made.write_leases({"02:00:00:00:00:01": {"address": "10.89.0.9", "name": "a"}})
    assert made.notes().metadata == {"xml": "old"}
    identity = made.notes().uuid

    def change():
        notes = replace(made.notes(), metadata={"xml": "new"})
        made.redefine(NamedNetwork("lan", subnet="10.90.0.0/24"), notes)

    step = 0
    while killed_at(step, change):
        assert made.network().subnet == "10.89.0.0/24"
        assert made.notes().metadata == {"xml": "old"} and made.leases()
        step += 1
    assert step == 1
    assert made.network().subnet == "10.90.0.0/24" and made.notes().metadata == {"xml": "new"}
    # Leases of another subnet are nobody's.
    assert made.leases() == {} and made.notes().uuid == identity
    made.write_notes(replace(made.notes(), metadata={"xml": "later"}))
    made.write_network(replace(made.network(), fixed={"02:00:00:00:00:01": "10.90.0.9"}))
    assert made.notes().metadata == {"xml": "later"}


def test_notes_that_came_with_a_network_stay_when_its_addresses_change():
    made, _ = directory.create(NamedNetwork("lan"), NetworkNotes(metadata={"xml": "one"}))
    made.write_network(replace(made.network(), fixed={"02:00:00:00:00:01": "10.89.0.9"}))
    assert made.notes().metadata == {"xml": "one"}


def test_a_network_appears_with_its_notes_or_not_at_all():
    def make():
        directory.create(NamedNetwork("lan"), NetworkNotes(metadata={"xml": "one"}))

    step = 0
    while killed_at(step, make):
        assert directory.networks() == []
        step += 1
    assert step == 2 and directory.find("lan").notes().metadata == {"xml": "one"}
