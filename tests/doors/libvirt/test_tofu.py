"""Unmodified OpenTofu with its provider for libvirt against the door."""

import os
import subprocess
from pathlib import Path

import pytest

from ringzero.control.host import client
from tests.doors import fetched
from tests.doors.libvirt.test_virsh import virsh

__all__ = ["virsh"]
# The provider's language is another one since 0.9.
CONFIGURATIONS = Path(__file__).with_name("tofu")
_IMAGE = ("qemu-img", "create", "-q", "-f", "qcow2")
SETTINGS = """
provider_installation {
  dev_overrides { "dmacvicar/libvirt" = "%s" }
  direct { exclude = ["*/*"] }
}
"""
pytestmark = [
    pytest.mark.peer,
    pytest.mark.doors,
    # From source, once.
    pytest.mark.timeout(3600),
]


@pytest.fixture(params=["0.8", "0.9"])
def tofu(request, virsh, tmp_path):
    """Runs a command, and returns what it printed."""
    provider, program = fetched.provider(request.param), fetched.tofu()
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "terraform-provider-libvirt").symlink_to(provider)
    (tmp_path / "tofurc").write_text(SETTINGS % plugins)
    image = tmp_path / "image.qcow2"
    subprocess.run([*_IMAGE, image, "64M"], check=True, capture_output=True)
    socket = tmp_path / "lv"
    values = {
        "uri": f"qemu:///session?socket={socket}",
        "folder": tmp_path,
        "image": image,
    }

    def run(*words, status=0, **changed):
        done = subprocess.run(
            [program, f"-chdir={CONFIGURATIONS / request.param}", *words],
            capture_output=True,
            text=True,
            timeout=300,
            env={
                **os.environ,
                **{f"TF_VAR_{name}": str(value) for name, value in (values | changed).items()},
                "HOME": str(tmp_path),
                "TMPDIR": str(tmp_path),
                "TF_CLI_CONFIG_FILE": str(tmp_path / "tofurc"),
                "TF_DATA_DIR": str(tmp_path / "data.tofu"),
                "TF_IN_AUTOMATION": "1",
            },
        )
        assert done.returncode == status, done.stdout[-6000:] + done.stderr[-6000:]
        return done.stdout

    def act(verb, *words, **options):
        lock = (f"-state={tmp_path / 'tofu.state'}", "-no-color", "-input=false")
        return run(verb, *lock, *words, **options)

    return act


def test_apply_plan_change_destroy(tofu, virsh, tmp_path):
    tofu("apply", "-auto-approve")
    (row,) = virsh.table("list", "--all")
    assert row[1:] == ["web", "running"]
    assert virsh.table("net-list") == [["lab", "active", "yes", "yes"]]
    volumes = [row[0] for row in virsh.table("vol-list", "images")]
    assert volumes == ["base.qcow2", "disk.qcow2", "seed.iso"]
    told = virsh("vol-dumpxml", "disk.qcow2", "images")
    assert f"<path>{tmp_path}/images/base.qcow2</path>" in told
    # What is told is what was sent.
    tofu("plan", "-detailed-exitcode")
    # The provider wants the number of a domain that runs (`id`) to be the same after its next
    # start, with every libvirt: one that is off has none.
    more = {"memory": 96, "vcpus": 2, "running": "false"}
    told = tofu("plan", "-detailed-exitcode", status=2, **more)
    # That of 0.8 makes a domain anew that is to have more memory.
    assert "0 to add, 1 to change, 0 to destroy" in told or "1 to add, 0 to change" in told
    tofu("apply", "-auto-approve", **more)
    config = client.machine("web").next()
    assert (config["memory"], config["cpus"]) == (96 << 20, 2)
    tofu("plan", "-detailed-exitcode", **more)
    tofu("destroy", "-auto-approve", **more)
    assert client.host().machines() == client.host().networks() == []
    assert [row[0] for row in virsh.table("pool-list", "--all")] == ["default"]
    assert not (tmp_path / "images").exists()
