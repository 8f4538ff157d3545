"""What an image says of its machine: a round, and what a hostile configuration may hold."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.machinespec import DataDisk, MachineSpec, Ready, Service, read

WHOLE = MachineSpec(
    memory=1 << 28,
    cpus=2,
    services=(
        Service("a", ("/a", "b c", "d\n'e")),
        Service("b.1", ("b",), "always", "nobody:7", ("a",)),
    ),
    ready=Ready(("HTTP", "http://127.0.0.1:8000/x?y=1"), 1, 2),
    snapshot=True,
    kernel="/boot/vmlinuz-6.1.0+x",
    disks=(DataDisk(1 << 30, "/srv/data"), DataDisk(8 << 20, "/b.c")),
)


def test_a_round():
    assert read(json.loads(json.dumps(WHOLE.plain()))) == WHOLE
    assert read(None) == read({}) == MachineSpec()
    assert MachineSpec().plain() == {}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"Memory": 0},
        {"Memory": True},
        {"Memory": 1 << 50},
        {"CPUs": "2"},
        {"CPUs": 256},
        {"Snapshot": 1},
        {"Services": {}},
        {"Services": [{"Name": "a", "Command": []}]},
        {"Services": [{"Name": "a/b", "Command": ["x"]}]},
        {"Services": [{"Name": "a", "Command": ["x\0"]}]},
        {"Services": [{"Name": "a", "Command": ["\ud800"]}]},
        {"Services": [{"Name": "a", "Command": "x"}]},
        {"Services": [{"Name": "a", "Command": ["x"], "Restart": "maybe"}]},
        {"Services": [{"Name": "a", "Command": ["x"], "User": "a b"}]},
        {"Services": [{"Name": "a", "Command": ["x"], "After": ["a b"]}]},
        {"Services": [{"Name": "a", "Command": ["x"]}] * 101},
        {"Kernel": "boot/vmlinuz"},
        {"Kernel": "/boot/../etc/passwd"},
        {"Kernel": "/"},
        {"Kernel": "/" + "a" * 2000},
        {"Kernel": ["/a"]},
        {"Disks": {}},
        {"Disks": [{"Size": 1 << 30, "Path": "/a"}] * 2},
        {"Disks": [{"Size": 1 << 30, "Path": f"/{n}"} for n in range(9)]},
        {"Disks": [{"Size": (1 << 40) + 1, "Path": "/a"}]},
        {"Disks": [{"Size": True, "Path": "/a"}]},
        {"Disks": [{"Size": 1 << 30, "Path": "/a b"}]},
        {"Disks": [{"Size": 1 << 30, "Path": "/a,/dev/vda:ext4:/b"}]},
        {"Disks": [{"Size": 1 << 30, "Path": "/a", "Format": "ntfs"}]},
        {"Ready": {}},
        {"Ready": {"Test": ["CMD"]}},
        {"Ready": {"Test": ["TCP", "65536"]}},
        {"Ready": {"Test": ["TCP", "8000; x"]}},
        {"Ready": {"Test": ["HTTP", "file:///x"]}},
        {"Ready": {"Test": ["HTTP", "http://x y"]}},
        {"Ready": {"Test": ["TCP", "80"], "Timeout": -1}},
    ],
)
def test_what_is_no_such_thing(value):
    with pytest.raises(GuestImageError, match="bad"):
        read(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["Memory", "Services", "Ready", "Test", "Name"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_anything_is_read_or_refused(value):
    with contextlib.suppress(GuestImageError):
        assert read(read(value).plain()) == read(value)
