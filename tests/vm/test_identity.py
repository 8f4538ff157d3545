"""Identities: fresh ones differ, records have the layout that the guest's program reads."""

import struct

import pytest

from ringzero.errors import InvalidValueError
from ringzero.vm.identity import Identity


def test_fresh_identities_differ():
    many = [Identity.fresh() for _ in range(100)]
    assert len({i.generation for i in many}) == len({i.entropy for i in many}) == 100


def test_record():
    identity = Identity(bytes(range(16)), bytes(range(64)), "web")
    record = identity.record(1_700_000_000_123_456_789)
    assert struct.unpack_from("<ii", record) == (512, 64)
    assert record[8:72] == bytes(range(64))
    assert struct.unpack_from("<qq", record, 72) == (1_700_000_000, 123_456_789)
    assert struct.unpack_from("<i", record, 88) == (3,)
    assert record[92:].rstrip(b"\0") == b"web"


def test_record_without_a_name_leaves_the_name_alone():
    assert struct.unpack_from("<i", Identity.fresh().record(), 88) == (-1,)


@pytest.mark.parametrize("name", ["", "x" * 65, "\u00e9" * 33])
def test_names_that_linux_does_not_take(name):
    with pytest.raises(InvalidValueError):
        Identity.fresh(name)


def test_wrong_sizes():
    with pytest.raises(InvalidValueError):
        Identity(b"", bytes(64))
    with pytest.raises(InvalidValueError):
        Identity(bytes(16), b"")
