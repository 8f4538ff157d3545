"""The metadata service as a real guest finds it, with tokens and without."""

import pytest

from tests.doors.firecracker.microvm import BOOT_ARGS, UP, MicroVm

pytestmark = [pytest.mark.boot, pytest.mark.engine]
ADDRESS = "169.254.169.254"
DOCUMENT = {"latest": {"meta-data": {"ami-id": "ami-1", "tags": {"a": "b"}}, "long": "x" * 40_000}}


def booted(place, guest, **config):
    kernel, initrd = guest
    vm = MicroVm(place, "--network", "user")
    vm.__enter__()
    vm.put("/machine-config", vcpu_count=1, mem_size_mib=256)
    vm.put(
        *("/boot-source",),
        kernel_image_path=str(kernel),
        initrd_path=str(initrd),
        boot_args=BOOT_ARGS,
    )
    vm.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name="tap0")
    vm.put("/mmds/config", network_interfaces=["eth0"], **config)
    vm.put("/mmds", **DOCUMENT)
    vm.put("/actions", action_type="InstanceStart")
    vm.expect(UP)
    vm.shell("ip link set eth0 up; ip addr add 169.254.1.1/16 dev eth0")
    return vm


@pytest.fixture(scope="module")
def first(guest, tmp_path_factory):
    vm = booted(tmp_path_factory.mktemp("v1"), guest, version="V1")
    yield vm
    vm.__exit__()


@pytest.fixture(scope="module")
def second(guest, tmp_path_factory):
    vm = booted(tmp_path_factory.mktemp("v2"), guest, version="V2", ipv4_address="169.254.7.7")
    yield vm
    vm.__exit__()


def test_the_first_version(first):
    get = f"wget -q -O - http://{ADDRESS}"
    assert first.shell(f"{get}/latest/meta-data/") == "ami-id\ntags/"
    assert first.shell(f"{get}/latest/meta-data/ami-id") == "ami-1"
    json = first.shell(f"{get}/latest/meta-data --header 'Accept: application/json'")
    assert json == '{"ami-id":"ami-1","tags":{"a":"b"}}'
    assert "404" in first.shell(f"wget -O - http://{ADDRESS}/none 2>&1 | tail -n 1")
    # More than a window's bytes.
    assert first.shell(f"{get}/latest/long | wc -c").strip() == "40000"


def test_what_is_said_later_is_there_at_once(first):
    assert first.ask("PATCH", "/mmds", {"latest": {"meta-data": {"ami-id": "ami-2"}}})[0] == 204
    assert first.shell(f"wget -q -O - http://{ADDRESS}/latest/meta-data/ami-id") == "ami-2"


def test_nothing_else_is_there(first):
    assert "refused" in first.shell(f"nc -w 5 {ADDRESS} 22 </dev/null 2>&1")


def test_a_guest_that_makes_no_sense(first):
    answer = first.shell(f"printf 'nonsense\\r\\n\\r\\n' | nc -w 5 {ADDRESS} 80")
    assert answer.startswith("HTTP/1.1 400")
    for _ in range(3):
        first.shell(f"head -c 100000 /dev/urandom | nc -w 2 {ADDRESS} 80 >/dev/null 2>&1")
    assert first.shell(f"wget -q -O - http://{ADDRESS}/latest/meta-data/tags/a") == "b"


def test_the_network_goes_on_beside_it(first):
    first.shell("udhcpc -i eth0 -n -q -s /bin/true")
    assert first.process.poll() is None


def test_the_second_version_wants_a_token(second):
    address = "169.254.7.7"
    ask = f"-O - http://{address}/latest/meta-data/ami-id"
    assert "401" in second.shell(f"wget {ask} 2>&1 | tail -n 1")
    put = "PUT /latest/api/token HTTP/1.1\\r\\nHost: x\\r\\nX-metadata-token-ttl-seconds: 60\\r\\n"
    second.shell(
        f"printf '{put}Connection: close\\r\\n\\r\\n' | nc -w 5 {address} 80 | tail -n 1 > /token"
    )
    assert len(second.shell("cat /token").strip()) == 96
    header = '--header "X-metadata-token: $(cat /token)"'
    assert second.shell(f"wget -q {header} {ask}") == "ami-1"


def test_a_snapshot_has_the_service_but_not_the_document(second, tmp_path):
    second.patch("/vm", state="Paused")
    files = {"snapshot_path": str(tmp_path / "s"), "mem_file_path": str(tmp_path / "m")}
    second.put("/snapshot/create", **files)
    place = tmp_path / "copy"
    place.mkdir()
    with MicroVm(place, "--network", "user") as copy:
        copy.put("/mmds", latest={"new": "document"})
        copy.put("/snapshot/load", **files, resume_vm=True)
        answer = copy.ask("GET", "/vm/config")[1]["mmds-config"]
        assert (answer["version"], answer["ipv4_address"]) == ("V2", "169.254.7.7")
        assert "401" in copy.shell("wget -O - http://169.254.7.7/latest/new 2>&1 | tail -n 1")
