"""A new root that is its user's: what an earlier process has left there leads nowhere."""

import os

import pytest

from ringzero.errors import HostError
from ringzero.host.jail import kernel, namespaces, newroot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
OWNER = (64321, 64321)


def prepared(root):
    """Prepare a root in a child with mounts of its own; return its error, or ""."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        said = "lost"
        try:
            kernel.unshare(namespaces.FLAGS["mount"])
            newroot.prepare(root, [], OWNER)
            said = ""
        except HostError as fault:
            said = fault.message
        except OSError as fault:
            said = "skip" if fault.errno == 1 else repr(fault)
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    if said == "skip":
        pytest.skip("no mount namespaces here")
    return said


@pytest.fixture
def root(tmp_path):
    made = tmp_path / "root"
    made.mkdir()
    os.chown(made, *OWNER)
    return made


def test_a_root_is_made_twice(root):
    for _ in range(2):
        assert prepared(root) == ""
    assert (root / "run").stat().st_uid == OWNER[0]


@pytest.mark.parametrize("name", ["run", "tmp", "dev", "proc"])
def test_a_link_that_was_left_there_is_not_followed(root, tmp_path, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    (root / name).symlink_to(victim)
    assert "cannot make" in prepared(root)
    assert victim.stat().st_uid == 0 and list(victim.iterdir()) == []
