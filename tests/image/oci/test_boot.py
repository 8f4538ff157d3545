"""What a container's image runs: entrypoint and command, by Docker's rules."""

from pathlib import Path

import pytest

from ringzero.errors import InvalidValueError
from ringzero.image.oci.boot import ContainerFiles
from ringzero.image.oci.manifest import image_config
from ringzero.image.oci.store import StoredImage


def files(entrypoint=(), cmd=()):
    lists = ("env", "ports", "volumes", "healthcheck", "layers", "diff_ids")
    nothing = dict.fromkeys(lists, ())
    words = dict.fromkeys(("user", "workdir", "stop_signal", "created", "config"), "")
    image = StoredImage(("app:1",), "sha256:0", Path("/r"), 1, entrypoint, cmd, **nothing, **words)
    return ContainerFiles("app", Path("/k"), Path("/i"), "quiet", image, "0")


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "given", "instead", "wanted"),
    [
        (("/x", "-v"), ("a",), [], None, ["/x", "-v", "a"]),
        (("/x", "-v"), ("a",), ["b", "c"], None, ["/x", "-v", "b", "c"]),
        ((), ("a", "b"), [], None, ["a", "b"]),
        ((), ("a", "b"), ["c"], None, ["c"]),
        (("/x",), ("a",), [], "/y", ["/y"]),
        (("/x",), ("a",), ["b"], "/y 'two words'", ["/y", "two words", "b"]),
        (("/x",), ("a",), ["b"], "", ["b"]),
    ],
)
def test_words(entrypoint, cmd, given, instead, wanted):
    assert files(entrypoint, cmd).words(given, instead) == wanted


def test_nothing_to_run():
    with pytest.raises(InvalidValueError, match="does not say what to run"):
        files().words([])
    with pytest.raises(InvalidValueError, match="does not say what to run"):
        files(("/x",), ("a",)).words([], "")
    with pytest.raises(InvalidValueError, match="No closing quotation"):
        files().words([], "'")


def test_a_command_of_one_text():
    """Of old images."""
    config = image_config(b'{"config": {"Entrypoint": "/x", "Cmd": null}}')
    assert config.entrypoint == ("/x",) and config.cmd == ()
