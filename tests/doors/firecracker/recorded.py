"""What clients and the door say to each other, held against what the public API allows.

`PROGRAM` is `ringzero-firecracker` with a notebook: each exchange becomes a line of JSON in the
file that RECORD names. `check` reads them. The facts are those of the API's public description,
written down here again, and not the door's own table.
"""

import json
import os
import stat
import sys
from pathlib import Path

# By method and path: fields that a request must have, and others that it may have. None: anything.
_RATE = {"rate_limiter"}
REQUESTS = {
    ("PUT", "/actions"): ({"action_type"}, set()),
    ("PUT", "/balloon"): (
        {"amount_mib", "deflate_on_oom"},
        {"stats_polling_interval_s", "free_page_reporting", "free_page_hinting"},
    ),
    ("PATCH", "/balloon"): ({"amount_mib"}, set()),
    ("PATCH", "/balloon/statistics"): ({"stats_polling_interval_s"}, set()),
    ("PUT", "/boot-source"): ({"kernel_image_path"}, {"boot_args", "initrd_path"}),
    ("PUT", "/drives/*"): (
        {"drive_id", "is_root_device"},
        {"partuuid", "cache_type", "is_read_only", "path_on_host", "io_engine", "socket"} | _RATE,
    ),
    ("PATCH", "/drives/*"): ({"drive_id"}, {"path_on_host"} | _RATE),
    ("PUT", "/entropy"): (set(), _RATE),
    ("PUT", "/logger"): (set(), {"log_path", "level", "show_level", "show_log_origin", "module"}),
    ("PUT", "/machine-config"): (
        {"vcpu_count", "mem_size_mib"},
        {"cpu_template", "smt", "track_dirty_pages", "huge_pages"},
    ),
    ("PUT", "/metrics"): ({"metrics_path"}, set()),
    ("PUT", "/mmds"): None,
    ("PATCH", "/mmds"): None,
    ("PUT", "/mmds/config"): ({"network_interfaces"}, {"version", "ipv4_address", "imds_compat"}),
    ("PUT", "/network-interfaces/*"): (
        {"iface_id", "host_dev_name"},
        {"guest_mac", "mtu", "rx_rate_limiter", "tx_rate_limiter"},
    ),
    ("PATCH", "/network-interfaces/*"): ({"iface_id"}, {"rx_rate_limiter", "tx_rate_limiter"}),
    ("PUT", "/snapshot/create"): ({"snapshot_path", "mem_file_path"}, {"snapshot_type"}),
    ("PUT", "/snapshot/load"): (
        {"snapshot_path"},
        {"mem_file_path", "mem_backend", "enable_diff_snapshots", "track_dirty_pages"}
        | {"resume_vm", "network_overrides", "vsock_override"},
    ),
    ("PATCH", "/vm"): ({"state"}, set()),
    ("PUT", "/vsock"): ({"guest_cid", "uds_path"}, {"vsock_id"}),
}
# By path of a GET: fields that its answer has. None: anything.
ANSWERS = {
    "/": {"id", "state", "vmm_version", "app_name"},
    "/balloon": {"amount_mib", "deflate_on_oom", "stats_polling_interval_s"},
    "/balloon/statistics": {"target_pages", "actual_pages", "target_mib", "actual_mib"},
    "/machine-config": {"vcpu_count", "mem_size_mib", "smt", "track_dirty_pages"},
    "/mmds": None,
    "/version": {"firecracker_version"},
    "/vm/config": {"boot-source", "drives", "machine-config", "network-interfaces", "vsock"},
}
_DONE, _TOLD, _REFUSED = 204, 200, 400


def program(place):
    """Return a program in `place` that is `ringzero-firecracker` with a notebook."""
    path = place / "recording-firecracker"
    lines = [
        f"#!{sys.executable}",
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parents[3])!r})",
        f"from {__name__} import main",
        "main()",
    ]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def main():
    from ringzero.cli import firecracker
    from ringzero.doors.firecracker.service import Service

    answer = Service.answer

    def noted(self, method, target, data):
        response = answer(self, method, target, data)
        line = [method, target, data.decode(), response.status, response.content.decode()]
        with Path(os.environ["RECORD"]).open("a") as file:
            file.write(json.dumps(line) + "\n")
        return response

    Service.answer = noted
    sys.exit(firecracker.main())


def check(path):
    """Hold what was noted against the facts; return (method, path, status) of each exchange."""
    found = []
    for line in path.read_text().splitlines():
        method, target, data, status, content = json.loads(line)
        place = _row(method, target)
        found.append((method, place, status))
        if status == _REFUSED:
            assert list(json.loads(content)) == ["fault_message"], line
            continue
        if method == "GET":
            assert status == _TOLD, line
            wanted, answer = ANSWERS[place], json.loads(content)
            assert wanted is None or wanted <= answer.keys(), line
            continue
        assert (status, content) == (_DONE, ""), line
        fields = REQUESTS[method, place]
        if fields is not None:
            body = {name for name, value in json.loads(data).items() if value is not None}
            assert fields[0] <= body <= fields[0] | fields[1], line
    return found


def _row(method, target):
    """Return the path of the facts that a target is."""
    parts = "/" + target.strip("/")
    if method == "GET" or (method, parts) in REQUESTS:
        return parts
    head = parts.split("/")[1]
    # What stands behind a path that has no identifier is not looked at.
    return f"/{head}/*" if (method, f"/{head}/*") in REQUESTS else f"/{head}"
