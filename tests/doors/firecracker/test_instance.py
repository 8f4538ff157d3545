"""What clients ask before and after the start, checked answer by answer."""

import json

import pytest

from ringzero.config.devices.pmem import PmemConfig
from ringzero.doors.firecracker import faults, table
from ringzero.doors.firecracker.table import API_VERSION

NOT_BEFORE = faults.BEFORE_START
NOT_AFTER = faults.AFTER_START


def test_who_it_is(api):
    assert api.ask("GET", "/") == (
        200,
        {"id": "m1", "state": "Not started", "vmm_version": API_VERSION, "app_name": "Firecracker"},
    )
    assert api.ask("GET", "/version") == (200, {"firecracker_version": API_VERSION})


def test_the_machine(api):
    assert api.ask("GET", "/machine-config")[1] == {
        "vcpu_count": 1,
        "mem_size_mib": 128,
        "smt": False,
        "track_dirty_pages": False,
        "huge_pages": "None",
    }
    api.put("/machine-config", vcpu_count=2, mem_size_mib=256, smt=True, cpu_template="None")
    assert api.ask("PATCH", "/machine-config", {"mem_size_mib": 64}) == (204, None)
    found = api.ask("GET", "/machine-config")[1]
    assert (found["vcpu_count"], found["mem_size_mib"], found["smt"]) == (2, 64, True)
    # A PUT is all of it.
    api.put("/machine-config", vcpu_count=3, mem_size_mib=64)
    assert api.ask("GET", "/machine-config")[1]["smt"] is False
    assert "PATCH" in api.fault("PATCH", "/machine-config", {})


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"vcpu_count": 0, "mem_size_mib": 64}, "number of vCPUs must be greater than 0"),
        ({"vcpu_count": 33, "mem_size_mib": 64}, "less than 32"),
        ({"vcpu_count": 3, "mem_size_mib": 64, "smt": True}, "even number if SMT"),
        ({"vcpu_count": 1, "mem_size_mib": 0}, "memory size (MiB) is either 0"),
        ({"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"}, "not supported: guest memory"),
        ({"vcpu_count": 1}, "missing field `mem_size_mib`"),
        ({"vcpu_count": 1, "mem_size_mib": 64, "ht_enabled": True}, "unknown field `ht_enabled`"),
    ],
)
def test_machines_that_are_none(api, fields, part):
    assert part in api.fault("PUT", "/machine-config", fields)
    assert api.ask("GET", "/machine-config")[1]["mem_size_mib"] == 128


def test_kernels_are_looked_for(api, tmp_path):
    missing = str(tmp_path / "vmlinux")
    assert api.fault("PUT", "/boot-source", {"kernel_image_path": missing}) == (
        "Boot source error: The kernel file cannot be opened: "
        f"No such file or directory (os error 2) {missing}"
    )
    (tmp_path / "vmlinux").touch()
    assert "initrd file cannot be opened" in api.fault(
        "PUT", "/boot-source", {"kernel_image_path": missing, "initrd_path": missing + "2"}
    )
    api.put("/boot-source", kernel_image_path=missing, boot_args="a\tb")
    assert "command line is invalid" in api.fault(
        "PUT", "/boot-source", {"kernel_image_path": missing, "boot_args": "a\nb"}
    )


def drive(path, name="rootfs", **fields):
    return {"drive_id": name, "path_on_host": str(path), "is_root_device": False, **fields}


def test_drives_and_what_the_kernel_is_told_of_them(api, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    api.put("/boot-source", kernel_image_path=str(disk), boot_args="quiet")
    api.put("/drives/data", **drive(disk, "data", is_read_only=True))
    assert api.instance.configuration.command_line() == "quiet"
    api.put("/drives/rootfs", **drive(disk, is_root_device=True))
    known = [d["drive_id"] for d in api.ask("GET", "/vm/config")[1]["drives"]]
    assert known == ["rootfs", "data"]
    line = api.instance.configuration.command_line
    assert line() == "quiet root=/dev/vda rw"
    api.put("/drives/rootfs", **drive(disk, is_root_device=True, is_read_only=True))
    assert line() == "quiet root=/dev/vda ro"
    api.put("/drives/rootfs", **drive(disk, is_root_device=True, partuuid="0eaa91a0-01"))
    assert line() == "quiet root=PARTUUID=0eaa91a0-01 rw"
    second = drive(disk, "second", is_root_device=True)
    assert "already exists" in api.fault("PUT", "/drives/second", second)
    assert api.fault("PUT", "/drives/other", drive(disk)) == faults.OTHER_ID
    assert "No such file" in api.fault("PUT", "/drives/x", drive(tmp_path / "none", "x"))
    assert "no regular file" in api.fault("PUT", "/drives/x", drive("/dev/null", "x"))
    assert "vhost-user" in api.fault("PUT", "/drives/x", {**drive(disk, "x"), "socket": "/s"})


def test_interfaces(api):
    net = {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02"}
    assert api.ask("PUT", "/network-interfaces/eth0", net) == (204, None)
    same = {**net, "iface_id": "eth1"}
    assert "MAC address is already in use" in api.fault("PUT", "/network-interfaces/eth1", same)
    group = {**net, "guest_mac": "01:00:AC:10:00:02"}
    assert "no MAC address of an interface" in api.fault("PUT", "/network-interfaces/eth0", group)
    other = api.fault("PUT", "/network-interfaces/eth9", net)
    assert other == "The id from the path [eth9] does not match the id from the body [eth0]!"
    found = api.ask("GET", "/vm/config")[1]["network-interfaces"]
    assert [one["guest_mac"] for one in found] == ["06:00:ac:10:00:02"]


def test_a_tap_that_cannot_be_had_is_told_at_once(api):
    api.instance.configuration.network = "tap"
    net = {"iface_id": "eth0", "host_dev_name": "a-name-that-is-too-long"}
    fault = api.fault("PUT", "/network-interfaces/eth0", net)
    assert fault.startswith("Network config error: Could not create the network device: Open tap")
    assert "--network user" in fault


def test_the_socket_device(api, tmp_path):
    place = tmp_path / "v.sock"
    answer = api.raw("PUT", "/vsock/vsock0", _json(vsock_id="v", guest_cid=3, uds_path=str(place)))
    assert (answer.status, answer.headers) == (204, [("deprecation", "true")])
    assert api.ask("GET", "/vm/config")[1]["vsock"] == {"guest_cid": 3, "uds_path": str(place)}
    assert "CID" in api.fault("PUT", "/vsock", {"guest_cid": 2, "uds_path": str(place)})
    place.touch()
    assert "Address in use" in api.fault("PUT", "/vsock", {"guest_cid": 3, "uds_path": str(place)})


def _json(**fields):
    return json.dumps(fields).encode()


def test_a_start_without_a_kernel(api):
    assert api.fault("PUT", "/actions", {"action_type": "InstanceStart"}) == (
        "Start microvm error: Cannot start microvm without kernel configuration."
    )
    assert api.ask("GET", "/")[1]["state"] == "Not started"


def test_a_start_that_fails_can_be_repeated(api, tmp_path):
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"no kernel at all")
    api.put("/boot-source", kernel_image_path=str(kernel))
    for _ in range(2):
        fault = api.fault("PUT", "/actions", {"action_type": "InstanceStart"})
        assert fault.startswith("Start microvm error: ")
    assert api.instance.machine is None


@pytest.mark.parametrize(
    "operation",
    [o for o in table.OPERATIONS if not o.before],
    ids=lambda o: f"{o.method} {o.path}",
)
def test_what_is_not_there_before_the_start(api, operation):
    with pytest.raises(faults.ApiFault) as caught:
        api.instance.handle(operation, "x", {})
    assert caught.value.message == NOT_BEFORE


@pytest.mark.parametrize(
    "operation",
    [o for o in table.OPERATIONS if not o.after],
    ids=lambda o: f"{o.method} {o.path}",
)
def test_what_is_not_there_after_the_start(api, operation):
    api.instance._state = "Running"
    with pytest.raises(faults.ApiFault) as caught:
        api.instance.handle(operation, "x", {})
    # A client takes these words, in answer to a start that it repeats, for success.
    assert caught.value.message == NOT_AFTER
    assert "not supported after starting the microVM" in caught.value.message


def test_actions_know_the_states(api):
    for action in ("FlushMetrics", "SendCtrlAltDel"):
        assert api.fault("PUT", "/actions", {"action_type": action}) == NOT_BEFORE
    api.instance._state = "Running"
    assert api.fault("PUT", "/actions", {"action_type": "InstanceStart"}) == NOT_AFTER
    assert api.fault("PUT", "/drives/x", drive("/x", "x")) == "PCI is not enabled"


def test_templates_that_change_the_processor(api):
    api.put("/cpu-config", kvm_capabilities=[], cpuid_modifiers=[])
    assert "not supported" in api.fault("PUT", "/cpu-config", {"msr_modifiers": [{"addr": "0x1"}]})


def test_too_long_a_document_of_metadata(api):
    assert api.ask("PUT", "/mmds", {"a": "x" * 900}) == (204, None)
    status, answer = api.ask("PUT", "/mmds", {"a": "x" * 1100})
    assert status == 413
    assert "fit" in answer["fault_message"]
    assert api.ask("PATCH", "/mmds", {"a": None, "b": [1]}) == (204, None)
    assert api.ask("GET", "/mmds") == (200, {"b": [1]})


def test_metadata_and_its_interfaces(api):
    config = {"network_interfaces": ["eth0"], "version": "V2"}
    assert "does not correspond" in api.fault("PUT", "/mmds/config", config)
    api.put("/network-interfaces/eth0", iface_id="eth0", host_dev_name="tap0")
    assert "empty" in api.fault("PUT", "/mmds/config", {"network_interfaces": []})
    far = {**config, "ipv4_address": "10.0.0.1"}
    assert "not link local" in api.fault("PUT", "/mmds/config", far)
    assert api.ask("PUT", "/mmds/config", config) == (204, None)
    assert api.ask("GET", "/vm/config")[1]["mmds-config"]["ipv4_address"] == "169.254.169.254"
    first = api.raw("PUT", "/mmds/config", _json(network_interfaces=["eth0"]))
    assert first.headers == [("deprecation", "true")]


def test_the_log_and_the_metrics(api, tmp_path):
    api.put("/metrics", metrics_path=str(tmp_path / "metrics"), emit_id=True)
    assert "Reinitialization" in api.fault("PUT", "/metrics", {"metrics_path": "/dev/null"})
    api.put("/logger", log_path=str(tmp_path / "log2"), level="Info", show_level=True)
    api.ask("GET", "/")
    api.metrics.flush()
    line = (tmp_path / "metrics").read_text()
    found = json.loads(line)
    assert found["id"] == "m1"
    assert found["put_api_requests"]["metrics_count"] == 2
    assert found["put_api_requests"]["logger_count"] == 1
    assert found["get_api_requests"]["instance_info_count"] == 1
    assert ":INFO] The API server received a Get request on '/'." in (tmp_path / "log2").read_text()
    # Counters begin anew.
    assert api.metrics.line()["put_api_requests"]["metrics_count"] == 0


def test_what_is_not_there_says_so(api):
    memory = {"total_size_mib": 1024}
    assert "not supported" in api.fault("PUT", "/hotplug/memory", memory)


def test_persistent_memory(api, tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    for path in (first, second):
        path.write_bytes(b"1")
    api.put("/boot-source", kernel_image_path=str(first), boot_args="quiet")
    api.put("/pmem/a", id="a", path_on_host=str(first))
    api.put("/pmem/b", id="b", path_on_host=str(second), root_device=True, read_only=True)
    kept = api.ask("GET", "/vm/config")[1]["pmem"]
    assert kept[1] == {
        "id": "b",
        "path_on_host": str(second),
        "root_device": True,
        "read_only": True,
        "rate_limiter": None,
    }
    config = api.instance.configuration.describe("m1")
    assert config.devices == (PmemConfig(first), PmemConfig(second, read_only=True))
    assert config.command_line == "quiet root=/dev/pmem1 ro"
    # Another description of the same; the order stays.
    api.put("/pmem/a", id="a", path_on_host=str(first), read_only=True)
    assert [item["id"] for item in api.ask("GET", "/vm/config")[1]["pmem"]] == ["a", "b"]
    root = {"id": "a", "path_on_host": str(first), "root_device": True}
    assert "root" in api.fault("PUT", "/pmem/a", root)
    assert "root" in api.fault("PUT", "/drives/r", drive(first, "r") | {"is_root_device": True})
    assert "BEFORE" not in api.fault("PATCH", "/pmem/a", {"id": "a"})


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"path_on_host": "/missing"}, "No such file"),
        ({"path_on_host": "/"}, "Is a directory"),
        ({"path_on_host": "EMPTY"}, "is empty"),
        ({}, "missing field `path_on_host`"),
        ({"path_on_host": "EMPTY", "dax": True}, "unknown field `dax`"),
    ],
)
def test_persistent_memory_that_is_none(api, tmp_path, fields, part):
    (tmp_path / "empty").touch()
    if fields.get("path_on_host") == "EMPTY":
        fields = {**fields, "path_on_host": str(tmp_path / "empty")}
    assert part in api.fault("PUT", "/pmem/p", {"id": "p", **fields})
    assert api.ask("GET", "/vm/config")[1]["pmem"] == []


@pytest.mark.parametrize("path", ["//[x", "/mmds?%zz", "/%ff", "http://[::1"])
def test_odd_targets_are_answered(api, path):
    assert api.raw("GET", path).status in (200, 400, 404)


@pytest.mark.parametrize("body", [b'{"a": "\\ud800"}', b'{"a": 1e999}', b'{"a": NaN}'])
def test_values_that_no_answer_can_have_are_refused(api, body):
    assert api.raw("PUT", "/mmds", body).status == 400
    assert api.ask("GET", "/version")[0] == 200


def test_a_load_that_fails_leaves_what_was(api, tmp_path):
    api.put("/machine-config", vcpu_count=2, mem_size_mib=64)
    before = api.ask("GET", "/vm/config")
    told = api.fault(
        "PUT", "/snapshot/load",
        {"snapshot_path": str(tmp_path / "none"), "mem_file_path": str(tmp_path / "none")},
    )  # fmt: skip
    assert "snapshot" in told.lower() and api.ask("GET", "/vm/config") == before
