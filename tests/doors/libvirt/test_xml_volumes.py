"""Storage pools and volumes: from XML to the actions' arguments, and back from what they tell."""

import pytest

from ringzero.api import table
from ringzero.doors.libvirt.xml.storage import POOL, VOLUME
from ringzero.doors.libvirt.xml.volumes import (
    PREALLOCATE_METADATA,
    pool,
    pool_definition,
    volume,
    volume_definition,
)
from ringzero.errors import ConfigError
from ringzero.units import MIB
from tests.doors.libvirt.documents import DOCUMENTS, of_kind, validate

UUID = "015d9b27-2460-498f-b445-0534630c8fa7"
POOL_SUMMARY = {
    "name": "images",
    "uuid": UUID,
    "path": "/srv/images",
    "active": True,
    "autostart": False,
    "volumes": 1,
    "capacity": 100 << 30,
    "allocation": 40 << 30,
    "available": 60 << 30,
}
VOLUME_SUMMARY = {
    "pool": "images",
    "name": "a.qcow2",
    "path": "/srv/images/a.qcow2",
    "format": "qcow2",
    "capacity": 10 << 30,
    "allocation": 200704,
    "physical": 196616,
    "backing": "/srv/images/base.qcow2",
    "backing_format": "qcow2",
    "modified": 1796007363.035897,
    "mode": 0o100640,
    "user": 1000,
    "group": 100,
}


def check(action, fields):
    """Let an action check arguments as every door does."""
    given = table.get(action).check(fields)
    assert {name: given[name] for name in fields} == fields


@pytest.mark.parametrize("name", of_kind("pool"))
def test_pools_of_real_clients(name):
    sent = POOL.parse(DOCUMENTS[name])
    found = pool_definition(sent)
    check("define_storage_pool", found.fields)
    assert (found.fields["name"], found.fields["path"]) == (sent.name, sent.path)


@pytest.mark.parametrize("name", of_kind("volume"))
def test_volumes_of_real_clients(name):
    sent = VOLUME.parse(DOCUMENTS[name])
    found = volume_definition(sent, "default")
    check("create_volume", found.fields)
    assert found.fields["capacity"] == sent.capacity
    assert found.fields.get("backing") == sent.backing_path


def test_a_volume_of_vagrant():
    found = volume_definition(VOLUME.parse(DOCUMENTS["vagrant-volume"]), "default")
    assert found.fields["format"] == found.fields["backing_format"] == "qcow2"
    assert found.fields["mode"] == 0o600
    assert any("permissions/label" in warning for warning in found.warnings)


def made(body, flags=0):
    text = f"<volume><name>v</name><capacity unit='MiB'>5</capacity>{body}</volume>"
    return volume_definition(VOLUME.parse(text), "p", flags)


@pytest.mark.parametrize(
    ("body", "flags", "preallocation"),
    [
        ("", 0, None),
        ("<allocation>0</allocation>", 0, None),
        ("<allocation unit='MiB'>5</allocation>", 0, "falloc"),
        ("<target><format type='qcow2'/></target>", 0, None),
        ("<target><format type='qcow2'/></target>", PREALLOCATE_METADATA, "metadata"),
        ("<backingStore><path>/b</path></backingStore>", PREALLOCATE_METADATA, None),
    ],
)
def test_what_is_allocated_at_once(body, flags, preallocation):
    found = made(body, flags)
    assert found.fields.get("preallocation") == preallocation
    assert found.fields["capacity"] == 5 * MIB


def test_permissions():
    found = made("<target><permissions><mode>0744</mode></permissions></target>")
    assert (found.fields["mode"], found.warnings) == (0o744, ())
    found = made("<target><permissions><owner>7</owner></permissions></target>")
    assert found.warnings == ("target/permissions/owner: not carried out",)


def test_what_is_not_carried_out_is_told():
    found = made(
        "<target><clusterSize unit='B'>4096</clusterSize><features><lazy_refcounts/></features>"
        "<encryption format='luks'/></target>"
    )
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "target/features/lazy_refcounts",
        "target/clusterSize",
        "target/encryption",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<volume><capacity>1</capacity></volume>",
        "<volume><name>v</name></volume>",
        "<volume type='dir'><name>v</name><capacity>1</capacity></volume>",
    ],
)
def test_volumes_that_cannot_be(text):
    with pytest.raises(ConfigError):
        volume_definition(VOLUME.parse(text), "p")


@pytest.mark.parametrize(
    "text",
    [
        "<pool type='logical'><name>p</name><target><path>/p</path></target></pool>",
        "<pool type='dir'><target><path>/p</path></target></pool>",
        "<pool type='dir'><name>p</name></pool>",
    ],
)
def test_pools_that_cannot_be(text):
    with pytest.raises(ConfigError):
        pool_definition(POOL.parse(text))


def test_what_is_told_is_what_is_there():
    told = pool(POOL_SUMMARY)
    assert (told.name, told.uuid, told.path) == ("images", UUID, "/srv/images")
    assert pool_definition(told).fields == {"name": "images", "uuid": UUID, "path": "/srv/images"}
    told = volume(VOLUME_SUMMARY)
    assert (told.key, told.permissions.mode) == ("/srv/images/a.qcow2", 0o640)
    fields = volume_definition(told, "images").fields
    assert (fields["capacity"], fields["backing"]) == (10 << 30, "/srv/images/base.qcow2")


@pytest.mark.peer
def test_what_is_told_is_valid(tmp_path):
    plain = VOLUME_SUMMARY | {"backing": None, "backing_format": None}
    validate(
        tmp_path,
        [
            POOL.render(pool(POOL_SUMMARY)),
            VOLUME.render(volume(VOLUME_SUMMARY)),
            VOLUME.render(volume(plain)),
        ],
    )
