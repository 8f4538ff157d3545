from pathlib import Path

import pytest

from ringzero.config.devices.vsock import VsockConfig
from ringzero.config.machine import MachineConfig
from ringzero.errors import InvalidValueError
from ringzero.vm.guest.identity import Identity


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/s", VsockConfig(Path("/s"))),
        ("/s,cid=7", VsockConfig(Path("/s"), 7)),
        ("/odd,cid=5,cid=7", VsockConfig(Path("/odd,cid=5"), 7)),
    ],
)
def test_spelling(text, expected):
    assert VsockConfig.parse(text) == expected


@pytest.mark.parametrize("text", ["", ",cid=7", "/s,cid=", "/s,cid=x"])
def test_no_socket(text):
    with pytest.raises(InvalidValueError):
        VsockConfig.parse(text)


def test_copies_have_sockets_of_their_own_beside_the_originals():
    config = Identity(cid=9).complete(MachineConfig(devices=(VsockConfig(Path("/s")),)))
    assert config.vsock == VsockConfig(Path("/s"), 9)
    copy = Identity("web", cid=10).adopt(config)
    assert copy.vsock == VsockConfig(Path("/s.web"), 10, Path("/s"))
    assert Identity(cid=11).adopt(copy).vsock == VsockConfig(Path("/s.11"), 11, Path("/s"))
    placed = Identity(cid=12, vsock=Path("/mine")).adopt(copy)
    assert placed.vsock == VsockConfig(Path("/mine"), 12, Path("/s"))
