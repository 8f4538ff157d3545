"""Identities: fresh ones differ, records have the layout that the guest's program reads."""

import struct

import pytest

from ringzero.errors import InvalidValueError
from ringzero.image.guest.identity_record import RECORD_SIZE
from ringzero.vm.guest.identity import Identity


def test_identities_differ():
    many = [Identity() for _ in range(10_000)]
    assert len({i.generation for i in many}) == len({i.entropy for i in many}) == len(many)
    # What is told of them to the guest is theirs alone, too.
    assert len({i.record()[8:72] for i in many}) == len(many)
    # Of four thousand million numbers, any two are alike among so many one time in a hundred.
    assert len({i.mac for i in many[:100]}) == len({i.cid for i in many[:100]}) == 100
    assert all(i.mac.startswith("02:") and 3 <= i.cid < 0xFFFFFFFF for i in many)


def test_record():
    record = Identity("web", bytes(range(16)), bytes(range(64))).record(5_000_000_007)
    assert struct.unpack_from("<ii", record) == (512, 64)
    assert record[8:72] == bytes(range(64))
    assert struct.unpack_from("<qq", record, 72) == (5, 7)
    assert struct.unpack_from("<i", record, 88) == (3,)
    assert record[92:160].rstrip(b"\0") == b"web"


def test_what_is_not_given_is_left_alone():
    assert struct.unpack_from("<qqi", Identity().record(), 72) == (0, -1, -1)
    record = Identity().record()
    assert not any(record[92:160])
    assert record[160:480] == (b"lo".ljust(16, b"\0") + bytes(24)) * 8 and not any(record[480:])


def test_the_addresses_of_the_interfaces():
    identity = Identity(mac="02:12:34:ff:ff:ff")
    macs = [identity.mac_of(number) for number in range(10)]
    assert macs[:2] == ["02:12:34:ff:ff:ff", "02:12:34:00:00:00"]
    assert len(set(macs)) == 10
    record = identity.record(macs=macs)
    assert len(record) == RECORD_SIZE
    assert record[160:184] == b"eth0".ljust(16, b"\0") + bytes.fromhex("0100 0212 34ff ffff")
    assert record[200:224] == b"eth1".ljust(16, b"\0") + bytes.fromhex("0100 0212 3400 0000")
    assert record[440:444] == b"eth7" and not any(record[464:])
    assert identity.record(macs=macs[:3])[280:283] == b"lo\0"


@pytest.mark.parametrize("name", ["", "x" * 65, "\u00e9" * 33])
def test_names_that_linux_does_not_take(name):
    with pytest.raises(InvalidValueError):
        Identity(name)


def test_wrong_sizes():
    with pytest.raises(InvalidValueError):
        Identity(generation=b"")
    with pytest.raises(InvalidValueError):
        Identity(entropy=b"")
