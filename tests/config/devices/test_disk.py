from pathlib import Path

import pytest

from ringzero.config.devices.disk import DiskConfig
from ringzero.errors import InvalidValueError


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("x", DiskConfig(Path("x"))),
        ("x,ro", DiskConfig(Path("x"), True)),
        ("x,ro,format=qcow2", DiskConfig(Path("x"), True, "qcow2")),
        ("x,format=raw,ro", DiskConfig(Path("x"), True, "raw")),
        ("a,b", DiskConfig(Path("a,b"))),
        ("ro", DiskConfig(Path("ro"))),
        ("x,rw,ro", DiskConfig(Path("x,rw"), True)),
    ],
)
def test_spelling(text, disk):
    assert DiskConfig.parse(text) == disk


@pytest.mark.parametrize("text", ["", ",ro", ",format=raw"])
def test_no_file(text):
    with pytest.raises(InvalidValueError):
        DiskConfig.parse(text)
