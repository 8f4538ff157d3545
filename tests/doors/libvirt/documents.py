"""XML documents of real clients and of libvirtd 9.0, from the recordings (`recordings`)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ringzero.doors.libvirt.xml.devices import DISK, INTERFACE
from ringzero.doors.libvirt.xml.domain import DOMAIN
from ringzero.doors.libvirt.xml.network import NETWORK
from ringzero.doors.libvirt.xml.snapshot import SNAPSHOT
from ringzero.doors.libvirt.xml.storage import POOL, VOLUME
from ringzero.doors.libvirt.xml.tree import parse

DOCUMENTS = {
    path.stem: path.read_text() for path in sorted((Path(__file__).parent / "data/xml").iterdir())
}
SHAPES = {shape.name: shape for shape in (DISK, INTERFACE, DOMAIN, NETWORK, SNAPSHOT, POOL, VOLUME)}
# libvirt has schemas for whole objects alone.
WHOLE = ("domain", "network", "domainsnapshot", "pool", "volume")


def shape_of(name):
    return SHAPES[parse(DOCUMENTS[name]).name]


def of_kind(kind):
    """Return the names of the documents whose root is called `kind`."""
    return [name for name, text in DOCUMENTS.items() if parse(text).name == kind]


def validate(tmp_path, documents):
    """Let libvirt's own schemas judge documents; skips without them."""
    if shutil.which("virt-xml-validate") is None:
        pytest.skip("no virt-xml-validate (package libvirt-clients)")
    for number, text in enumerate(documents):
        path = tmp_path / f"{number}.xml"
        path.write_text(text)
        done = subprocess.run(
            ["virt-xml-validate", path], capture_output=True, text=True, timeout=60
        )
        if "xmllint" in done.stderr and "not found" in done.stderr:
            pytest.skip("no xmllint (package libxml2-utils)")
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{text}"
