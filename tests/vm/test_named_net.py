"""Networks by name from inside default guests: names, isolation, ports, copies, kill -9."""

import os
import signal
import socket
import time
import urllib.request
from contextlib import ExitStack

import pytest

from ringzero.control.host.client import Host
from ringzero.errors import ConflictError, HostError, NotFoundError
from ringzero.host import ofdlock
from ringzero.net.named import directory
from ringzero.vm.guest.identity import Identity
from ringzero.vm.machine import Machine
from ringzero.vm.saved.store import Store

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    place = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_NETWORKS_DIR", str(place))
        host = Host(place)
        host.create_network("lan")
        host.create_network("vault", mode="isolated", host=False)
        yield host


@pytest.fixture(scope="module")
def machines(host):
    with ExitStack() as stack:
        made = []
        for name, nets in (("web", ["lan"]), ("cli", ["lan", "vault"]), ("hid", ["vault"])):
            try:
                machine = Machine(image="micro", memory="128M", engine="soft", name=name, nets=nets)
            except HostError as fault:
                pytest.skip(f"needs Debian packages: {fault.message}")
            made.append(stack.enter_context(machine))
        made[0].run("mkdir /w; echo hello >/w/index.html; httpd -h /w -p 80")
        yield made


def say(machine, command):
    return machine.run(command, timeout=60, check=True, text=True).stdout


def say_afresh(machine, command):
    """Say it in a guest that has nothing left of a test before, which may have failed."""
    left = "/tmp/in /tmp/p /tmp/got /tmp/over"
    return say(machine, f"killall nc 2>/dev/null; rm -f {left}; {command}")


def fetch(port, patience=20):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=patience) as answer:
        return answer.read()


def pid(place):
    """Return who holds a network's lock."""
    for entry in os.listdir("/proc"):
        try:
            words = open(f"/proc/{entry}/cmdline", "rb").read().split(b"\0")  # noqa: PTH123, SIM115
        except OSError:
            continue
        if b"ringzero.net.named" in words and os.fsencode(place.path) in words:
            return int(entry)
    return None


def test_two_machines_by_name_and_a_third_that_is_apart(machines):
    web, cli, hid = machines
    assert (
        say(cli, "wget -qO- http://web/; wget -qO- http://web.ringzero.internal/") == 2 * "hello\n"
    )
    assert "web" in say(
        cli, "nslookup $(ip -4 neigh | grep -o '^10[0-9.]*' | head -n1) || true; echo web"
    )
    assert hid.run("timeout 5 wget -qO- http://web/", timeout=60).exit_code != 0
    address = say(web, "ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'").split()[1]
    assert hid.run(f"timeout 3 wget -qO- http://{address}/", timeout=60).exit_code != 0
    # The two on the isolated network reach each other, and nothing else.
    assert say(hid, "ping -c 1 cli >/dev/null; echo $?") == "0\n"
    assert say(hid, "ip route | grep -c default || true") == "0\n"


def test_they_are_listed(host, machines):
    lan, vault = host.networks()
    assert [m["name"] for m in lan["machines"]] == ["web", "cli"]
    assert [m["name"] for m in vault["machines"]] == ["cli", "hid"]
    addresses = {m["mac"]: m["address"] for m in lan["machines"]}
    assert {mac: lease["address"] for mac, lease in lan["leases"].items()} == addresses
    with pytest.raises(ConflictError, match="machines are on"):
        host.remove_network("lan")


def test_addresses_that_are_others_are_not_spoken_for(host, machines):
    hid = machines[2]
    say(hid, "ip addr add 10.250.0.1/24 dev eth0; ping -c 1 -W 1 -I 10.250.0.1 cli || true")
    (refused,) = (m["refused"] for m in host.networks()[1]["machines"] if m["name"] == "hid")
    assert refused
    say(hid, "ip addr del 10.250.0.1/24 dev eth0")


def test_ports_and_copies(machines):
    web, cli, _ = machines
    (made,) = web.nets.publish("0:80")
    assert fetch(made.port) == b"hello\n"
    with pytest.raises(ConflictError, match="is taken"):
        cli.nets.publish(f"{made.port}:80")
    with web.seed() as seed, web.grow(seed, Identity(name="copy")) as copy:
        copy.start()
        (own,) = copy.nets.ports()
        # Nothing runs in it but what ran: it asks for its address by itself.
        deadline = time.monotonic() + 30
        while True:
            try:
                assert fetch(own.port, 2) == b"hello\n"
                break
            except OSError:
                assert time.monotonic() < deadline
        assert say(cli, "wget -qO- http://copy/") == "hello\n"
        mine, others = (say(m, "ip -4 -o addr show eth0 | grep inet") for m in (copy, web))
        assert mine != others and mine.count("inet") == 1
    assert web.nets.unpublish(str(made.port)) == [made]


def test_a_copy_announces_itself_and_has_no_connection_of_the_originals(machines):
    web, cli, _ = machines
    say(cli, "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_accept; ip neigh flush dev eth0")
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        number = door.getsockname()[1]
        gateway = "$(ip -4 route | awk '/default/{print $3}')"
        pull = f"(nc {gateway} {number} <>/tmp/p >/tmp/got; echo over >/tmp/over) "
        say_afresh(web, f"mkfifo /tmp/p; ({pull} &) >/dev/null 2>&1")
        link, _ = door.accept()
        with link, web.seed() as seed, web.grow(seed, Identity(name="twin")) as copy:
            copy.start()
            over = "for n in $(seq 200); do [ -e /tmp/over ] && exit; sleep 0.05; done; exit 1"
            assert say(copy, over) == ""
            address = say(copy, "ip -4 -o addr show eth0 | grep -o 'inet [0-9.]*'").split()[1]
            heard = f"until ip neigh | grep '^{address} '; do sleep 0.05; done"
            assert say(copy, "cat /sys/class/net/eth0/address").strip() in say(cli, heard)
            assert address in say(cli, "nslookup twin")
            link.sendall(b"after")
            say(web, "until [ -s /tmp/got ]; do sleep 0.05; done; [ ! -e /tmp/over ]")
    say(web, "rm -f /tmp/p /tmp/got /tmp/over")


def test_a_copy_has_no_connection_with_other_machines_and_the_originals_go_on(
    host, machines, tmp_path
):
    """Nobody but the guest itself knows of such a one, also where the network has ended since."""
    web, cli, _ = machines
    say_afresh(web, "mkfifo /tmp/in; (nc -l -p 7000 <>/tmp/in >/tmp/got 2>&1 &) >/dev/null 2>&1")
    pull = "(nc web 7000 <>/tmp/p >/tmp/got; echo over >/tmp/over)"
    say_afresh(cli, f"mkfifo /tmp/p; ({pull} &) >/dev/null 2>&1")
    say(web, "echo one >/tmp/in")
    say(cli, "until grep -q one /tmp/got; do sleep 0.05; done")
    over = "for n in $(seq 200); do [ -e /tmp/over ] && exit; sleep 0.05; done; exit 1"
    with cli.seed() as seed, cli.grow(seed, Identity(name="twin")) as copy:
        copy.start()
        assert say(copy, over) == ""
    saved = cli.snapshot("saved", store=Store(tmp_path))
    say(web, "echo two >/tmp/in")
    say(cli, "until grep -q two /tmp/got; do sleep 0.05; done; [ ! -e /tmp/over ]")
    os.kill(pid(directory.find("lan")), signal.SIGKILL)
    with saved.restore(Identity(name="late")) as late:
        assert say(late, over) == ""
    say(web, "echo three >/tmp/in")
    say(cli, "until grep -q three /tmp/got; do sleep 0.05; done; [ ! -e /tmp/over ]")
    say(cli, "rm -f /tmp/p /tmp/got; killall nc")
    say(web, "rm -f /tmp/in /tmp/got")


def test_kill_9_in_mid_transfer(host, machines):
    web, cli, _ = machines
    (made,) = web.nets.publish("0:80")
    place = directory.find("lan")
    say(web, "head -c 30000000 /dev/zero >/w/big")
    pull = cli.agent.run(["sh", "-c", "wget -qO- http://web/big | wc -c >/n"])
    time.sleep(0.2)
    os.kill(pid(place), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not ofdlock.is_held(place.path / "lock") or len(host.networks()[0]["machines"]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # What goes between machines goes on; what is new finds the same ports and names.
    assert fetch(made.port) == b"hello\n"
    pull.wait(60)
    assert say(cli, "cat /n") == "30000000\n"
    assert say(cli, "wget -qO- http://web/") == "hello\n"
    web.nets.unpublish(str(made.port))


def test_kill_9_while_a_machine_only_receives(host, machines):
    """What ends with the process ends in the guest, too, though that says nothing by itself."""
    _, cli, _ = machines
    place = directory.find("lan")
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(30)
        url = f"http://host.ringzero.internal:{door.getsockname()[1]}/f"
        pull = cli.agent.run(["sh", "-c", f"wget -O /part {url} 2>/why"])
        link, _ = door.accept()
        with link:
            link.recv(4096)
            link.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 5000)
            say(cli, "until [ -s /part ]; do sleep 0.05; done")
            os.kill(pid(place), signal.SIGKILL)
            assert pull.wait(30) != 0, "it does not wait for ever"
            assert "reset" in say(cli, "cat /why")


def test_an_unknown_network():
    with pytest.raises(NotFoundError, match="no network called 'nix'") as caught:
        Machine(image="micro", net="nix")
    assert "ringzero network create nix" in caught.value.hint
