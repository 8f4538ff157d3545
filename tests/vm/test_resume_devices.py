"""Devices of machines that go on from a template: networks, sockets, clocks."""

import os
import socket
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from ringzero.board import microvm_map as memmap
from ringzero.config.devices.net import NetConfig
from ringzero.control.host.client import Host
from ringzero.engine import select
from ringzero.errors import HostError, NotFoundError
from ringzero.vm import boot
from ringzero.vm.machine import Machine
from ringzero.vm.saved import making
from ringzero.vm.saved.templates import Templates
from tests.devices.chips.test_vmclock import parse, tai_at
from tests.vm.ends.vsock_programs import local_cid, serve
from tests.vm.guests import own_templates
from tests.vm.test_resume import look_at_clocks

pytestmark = [pytest.mark.boot, pytest.mark.engine]
FIELDS = {"memory": "128M", "engine": "soft"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with own_templates(tmp_path_factory.mktemp("cache")):
        try:
            boot.complete(None, "micro", dict(FIELDS))
        except HostError as fault:
            pytest.skip(f"needs Debian packages: {fault.message}")
        # What an idle guest still does is nothing here.
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(making, "_SETTLE", 0.2)
            yield Templates()


@pytest.fixture(scope="module")
def lan(store, tmp_path_factory):
    """A network by name, and a template of machines on one, with a socket device."""
    place = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RINGZERO_NETWORKS_DIR", str(place))
        Host(place).create_network("lan")
        Host(place).create_network("other")
        make(store, nets=["other"], vsock="/nonexistent/socket")
        yield "lan"


def make(store, **fields):
    """Make the template of machines with these fields."""
    config = boot.complete(None, "micro", {**FIELDS, **fields})
    assert making.make(config, select.choose("soft"), store)


def machine(**fields):
    return Machine(image="micro", **{**FIELDS, **fields})


def output(vm, command, **options):
    result = vm.run(command, timeout=60, **options)
    assert result.exit_code == 0, result
    return result.stdout.decode()


def test_networks_by_name_come_in_afterwards(lan, tmp_path):
    with ExitStack() as stack:
        web, cli = (
            stack.enter_context(
                machine(name=name, nets=[lan], vsock=str(tmp_path / name), memory="128M")
            )
            for name in ("web", "cli")
        )
        show = "ip -o addr show eth0 | grep -o 'inet6* [0-9a-f.:]*'"
        seen = [output(vm, show).split() for vm in (web, cli)]
        assert [vm.stats()["started"] for vm in (web, cli)] == ["resumed"] * 2
        # One address each, which the network has given it, and none from before.
        fours = [words[words.index("inet") + 1] for words in seen]
        assert len(set(fours)) == 2
        assert all(words.count("inet") == 1 for words in seen)
        assert output(cli, "ping -c 1 -w 20 web >/dev/null; echo $?; hostname") == "0\ncli\n"
        for vm, address in zip((web, cli), fours, strict=True):
            assert vm.config.nets[0].mac == output(vm, "cat /sys/class/net/eth0/address").strip()
            assert output(vm, "ip -4 route | grep -c '^default'") == "1\n"
            assert output(vm, f"ip -4 route | grep -c 'src {address}'") == "1\n"


def test_a_network_is_there_without_any_command(lan, tmp_path):
    with machine(nets=[f"{lan},port=0:7"], vsock=str(tmp_path / "s")) as vm:
        vm.start()
        deadline = time.monotonic() + 30
        place = Host(Path(os.environ["RINGZERO_NETWORKS_DIR"]))
        while not any(
            entry["mac"] == vm.config.nets[0].mac and entry["address"]
            for network in place.networks()
            for entry in network["machines"]
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert vm.stats()["started"] == "resumed"


def test_a_socket_device_has_an_identifier_of_its_own(lan, tmp_path):
    seen = set()
    for name in ("one", "two"):
        with machine(nets=[lan], vsock=str(tmp_path / name)) as vm:
            for program, data in (("cid", local_cid()), ("serve", serve(1234, "cat"))):
                install = f"cat >/tmp/{program}; chmod +x /tmp/{program}"
                vm.run(["sh", "-c", install], input=data, timeout=60, check=True)
            assert vm.stats()["started"] == "resumed"
            (cid,) = struct.unpack("<I", vm.run(["/tmp/cid"], timeout=60, check=True).stdout)
            assert cid == vm.config.of_kind("vsock")[0].cid
            seen.add(cid)
            vm.agent.run(["/tmp/serve"])
            with dialled(vm, 1234) as link:
                link.sendall(b"hello")
                assert link.recv(5, socket.MSG_WAITALL) == b"hello"
    assert len(seen) == 2


def dialled(vm, port):
    """Return a connection to a port that a program of the guest's is about to listen on."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return vm.vsock.dial(port)
        except NotFoundError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_the_clocks_page_is_another_and_right(store):
    make(store)
    seen = []
    dump = ["dd", "if=/dev/mem", "bs=4096", f"skip={memmap.CLOCK_PAGE >> 12}", "count=1"]
    for _ in range(2):
        with machine() as vm:
            install = ["sh", "-c", "cat >/tmp/look; chmod +x /tmp/look"]
            vm.run(install, input=look_at_clocks(), timeout=60, check=True)
            found = parse(vm.run(dump, timeout=60, check=True).stdout)
            assert vm.stats()["started"] == "resumed"
            apart = []
            for _ in range(5):
                said = vm.run(["/tmp/look"], timeout=60, check=True).stdout
                counter, seconds, nanoseconds = struct.unpack("<QQQ", said)
                tai = tai_at(found, counter) - found["tai_offset_sec"]
                apart.append(abs(tai - seconds - nanoseconds / 1e9))
            # Whoever is interrupted between its two looks finds more.
            assert min(apart) < 0.001, apart
            seen.append((found["disruption_marker"], found["vm_generation_counter"]))
    assert all(len(set(values)) == 2 for values in zip(*seen, strict=True))


def test_no_command_waits_for_addresses_that_others_may_give(store):
    """As on a TAP, a bridge or passt."""
    nets = [NetConfig("user", setup="later")]
    make(store, nets=nets)
    with machine(nets=nets) as vm:
        assert output(vm, "echo at once") == "at once\n"
        assert vm.stats()["started"] == "resumed"
        # The one that has asked is this machine, whenever the answer comes.
        look = f"grep '^{vm.config.nets[0].mac} -b$' /run/dhcp.eth0; ip -4 addr show eth0"
        deadline = time.monotonic() + 100
        while True:
            seen = vm.run(look, timeout=60).stdout.decode()
            if "-b\n" in seen and "inet 10.0.2.15/" in seen:
                break
            assert time.monotonic() < deadline, seen
            time.sleep(0.05)
    with machine(nets=[NetConfig("none", setup="later")]) as vm:
        # Nobody answers.
        assert output(vm, "echo at once") == "at once\n"
        assert vm.stats()["started"] == "resumed"
