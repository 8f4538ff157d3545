"""What package managers' databases say; Debian's own dpkg is the oracle."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.image.sbom import cyclonedx
from ringzero.image.sbom.packages import Inventory, Package, inventory

DPKG = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc (2.36-9)
Version: 2.36-9+deb12u4
Description: GNU C Library
 a line that goes on: with a colon
Homepage: https://www.gnu.org/software/libc/libc.html

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
Status: install ok unpacked
Version: 1
"""
APK = """\
C:Q1/se1PjO94hYXbfpNR1/61hVORIc=
P:musl
V:1.2.4-r2
A:x86_64
L:MIT
o:musl
U:https://musl.libc.org/
F:lib
R:libc.musl-x86_64.so.1

P:busybox
V:1.36.1-r5
A:x86_64
L:GPL-2.0-only
o:busybox
"""


class Tree:
    """Files of a dictionary, or of this host."""

    def __init__(self, files=None):
        self.files = files

    def read(self, path, limit):
        if self.files is None:
            return Path(path).read_bytes() if Path(path).is_file() else b""
        return self.files.get(path, b"")

    def listing(self, path):
        if self.files is None:
            return sorted(p.name for p in Path(path).iterdir()) if Path(path).is_dir() else []
        head = path + "/"
        return sorted({f[len(head) :].split("/")[0] for f in self.files if f.startswith(head)})


def test_dpkg():
    found = inventory(
        Tree(
            {
                "/var/lib/dpkg/status": DPKG.encode(),
                "/etc/os-release": b'ID=debian\nVERSION_ID="12"',
            }
        )
    )
    (package,) = found.packages
    assert (package.kind, package.name, package.version) == ("deb", "libc6", "2.36-9+deb12u4")
    assert (package.architecture, package.source) == ("amd64", "glibc")
    assert (found.distribution, found.release) == ("debian", "12")


def test_images_without_dpkg_have_a_file_for_each_package():
    parts = {f"/var/lib/dpkg/status.d/{n}": f"Package: {n}\nVersion: 1\n".encode() for n in "ab"}
    parts["/var/lib/dpkg/status.d/a.md5sums"] = b"Package: no\nVersion: 1"
    assert [p.name for p in inventory(Tree(parts)).packages] == ["a", "b"]


def test_apk():
    found = inventory(Tree({"/lib/apk/db/installed": APK.encode()}))
    assert [(p.name, p.version, p.license) for p in found.packages] == [
        ("busybox", "1.36.1-r5", "GPL-2.0-only"),
        ("musl", "1.2.4-r2", "MIT"),
    ]


def test_python():
    place = "/usr/local/lib/python3.12/site-packages"
    metadata = b"Metadata-Version: 2.1\nName: Flask_Thing\nVersion: 3.0\nLicense: BSD\n\nName: no\n"
    egg = b"Metadata-Version: 1.0\nName: old\nVersion: 0.1\n"
    found = inventory(
        Tree(
            {
                f"{place}/flask_thing-3.0.dist-info/METADATA": metadata,
                f"{place}/old-0.1.egg-info": egg,
                f"{place}/none-1.dist-info/METADATA": b"",
            }
        )
    )
    assert [(p.name, p.version) for p in found.packages] == [("Flask_Thing", "3.0"), ("old", "0.1")]


def test_what_is_not_read_is_named():
    found = inventory(Tree({"/usr/lib/sysimage/rpm/rpmdb.sqlite": b"x"}))
    assert found.unread == ("/usr/lib/sysimage/rpm",)


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="needs dpkg")
def test_this_hosts_packages_are_those_of_dpkg():
    command = [
        "dpkg-query",
        "-W",
        "-f",
        "${db:Status-Status} ${Package} ${Version} ${Architecture}\n",
    ]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = {
        tuple(line.split()[1:]) for line in told.splitlines() if line.startswith("installed ")
    }
    found = inventory(Tree()).packages
    assert {(p.name, p.version, p.architecture) for p in found if p.kind == "deb"} == wanted


@given(st.binary(max_size=400), st.binary(max_size=400), st.binary(max_size=200))
def test_any_bytes(dpkg, apk, metadata):
    place = "/usr/lib/python3/dist-packages/a.dist-info/METADATA"
    files = {"/var/lib/dpkg/status": dpkg, "/lib/apk/db/installed": apk, place: metadata}
    for package in inventory(Tree(files)).packages:
        assert package.name and package.version


def test_a_document():
    pytest.importorskip("cyclonedx")
    packages = (
        Package("deb", "libc6", "2.36-9", "amd64", "glibc", homepage="https://x.example/"),
        Package("pypi", "Flask_Thing", "3.0", license="BSD"),
    )
    found = Inventory(packages, "debian", "12", "Debian 12", ("/var/lib/rpm",))
    digest = "sha256:" + "1" * 64
    text = cyclonedx.document(found, "web:1", digest, "2024-01-02T03:04:05.123456789Z")
    assert text == cyclonedx.document(found, "web:1", digest, "2024-01-02T03:04:05.123456789Z")
    value = json.loads(text)
    assert (value["bomFormat"], value["specVersion"]) == ("CycloneDX", "1.6")
    assert value["metadata"]["component"]["name"] == "web:1"
    assert value["metadata"]["timestamp"].startswith("2024-01-02T03:04:05")
    assert {c.get("purl") for c in value["components"]} == {
        None,
        "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12&upstream=glibc",
        "pkg:pypi/flask-thing@3.0",
    }
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    try:
        fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except Exception as missing:
        pytest.skip(f"its schemas cannot be checked here: {missing}")
    assert fault is None
