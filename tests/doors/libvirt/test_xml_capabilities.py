"""What is told of the host: valid by libvirt's schemas, and what its clients look for."""

import pytest

from ringzero.doors.libvirt.xml.capabilities import (
    HostFacts,
    capabilities,
    domain_capabilities,
    system_information,
)
from ringzero.doors.libvirt.xml.tree import parse
from tests.doors.libvirt.documents import validate

HOST = HostFacts(
    "015d9b27-2460-498f-b445-0534630c8fa7",
    "x86_64",
    4,
    8 << 30,
    kvm=True,
    cpus=("x86-64-v2", "max"),
)
PLAIN = HostFacts("015d9b27-2460-498f-b445-0534630c8fa7", "x86_64", 1, 1 << 30)


@pytest.mark.peer
def test_they_are_valid(tmp_path):
    for host in (HOST, PLAIN):
        validate(tmp_path, [capabilities(host), domain_capabilities(host)])


def test_virt_install_finds_what_it_needs():
    """The least that it works with: the host's architecture, and a guest with a domain type."""
    root = parse(capabilities(HOST))
    assert root.find("host").find("cpu").find("arch").text == "x86_64"
    arch = root.find("guest").find("arch")
    assert root.find("guest").find("os_type").text == "hvm"
    assert [item.attributes["type"] for item in arch.all("domain")] == ["kvm", "qemu"]
    assert [
        i.attributes["type"]
        for i in parse(capabilities(PLAIN)).find("guest").find("arch").all("domain")
    ] == ["qemu"]


def test_one_type_of_domain():
    assert parse(domain_capabilities(HOST, "qemu")).find("domain").text == "qemu"
    assert parse(domain_capabilities(HOST)).find("domain").text == "kvm"
    assert parse(domain_capabilities(PLAIN, "kvm")).find("domain").text == "qemu"
    modes = {
        item.attributes["name"]: item.attributes["supported"]
        for item in parse(domain_capabilities(PLAIN)).find("cpu")
    }
    assert modes == dict.fromkeys(("host-passthrough", "maximum", "host-model", "custom"), "no")


def test_system_information():
    root = parse(system_information({"system": {"manufacturer": "a & b", "product": "c"}}))
    entries = {item.attributes["name"]: item.text for item in root.find("system")}
    assert entries == {"manufacturer": "a & b", "product": "c"}
