"""Finding a format by content: those that cannot be meant are not loaded, and nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ringzero
from ringzero.disk import create_disk
from ringzero.disk.contract import Sample
from ringzero.disk.formats.vdi import _SIGNATURE
from ringzero.disk.probing import _candidates
from ringzero.disk.registry import FORMATS

MAGICS = [
    b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\1", b"QED\0", b"KDMV", b"COWD", b"\xbe\xba\xfe\xca",
    b"vhdxfile", b"conectix", b"WithoutFreeSpace", b"WithouFreSpacExt", b"LUKS\xba\xbe", b"ustar",
    b"# Disk DescriptorFile", b"\n#\tdisk descriptorfile", b"\xef\xbb\xbfVersion = 1\nCID=1\nRW 1",
    _SIGNATURE.to_bytes(4, "little"), b"",
]  # fmt: skip


@given(
    st.sampled_from(MAGICS), st.sampled_from([0, 1, 0x40, 257]), st.sampled_from(MAGICS),
    st.binary(max_size=600), st.sampled_from(MAGICS),
)  # fmt: skip
def test_who_is_not_asked_would_have_said_no(first, at, second, rest, tail):
    head = bytearray(600)
    head[: len(rest)] = rest
    head[at : at + len(second)] = second
    head[: len(first)] = first
    sample = Sample(bytes(head), tail.ljust(512, b"\0"), 1 << 20, "x")
    asked = {name: kind.probe(sample) for name, kind in _candidates(sample)}
    every = {name: kind.probe(sample) for name, kind in FORMATS}
    assert {n: s for n, s in asked.items() if s} == {n: s for n, s in every.items() if s}


LOADED = """
import sys
from pathlib import Path
from ringzero.disk import open_disk
print(open_disk(sys.argv[1], read_only=True).format)
prefix = "ringzero.disk.formats."
print(*{m.removeprefix(prefix).partition(".")[0] for m in sys.modules if m.startswith(prefix)})
"""


@pytest.mark.parametrize("kind", ["raw", "qcow2", "vdi"])
def test_formats_that_are_not_meant_are_not_loaded(tmp_path, kind):
    path = tmp_path / "disk"
    create_disk(path, kind, 1 << 20)
    environment = os.environ | {"PYTHONPATH": str(Path(ringzero.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, path], capture_output=True, text=True, check=True,
        env=environment,
    )  # fmt: skip
    found, loaded = done.stdout.splitlines()
    assert found == kind
    assert not set(loaded.split()) - {kind, "raw", "ova"}
