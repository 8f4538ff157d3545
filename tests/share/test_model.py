"""Random work of two guests, one by FUSE and one by 9p, and the host, compared with a model."""

import errno
import os
import stat

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tests.share.fuse import client as fuse
from tests.share.ninep import client as ninep

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
NAMES = st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/e/a"])
WHO = st.sampled_from([0, 1, 2])


class Host:
    """Does what a client does, by the host's own calls."""

    def __init__(self, place):
        self.place = place

    def write(self, path, data):
        (self.place / path).write_bytes(data)

    def read(self, path):
        return (self.place / path).read_bytes()

    def unlink(self, path):
        (self.place / path).unlink()

    def rename(self, old, new):
        (self.place / old).rename(self.place / new)

    def link(self, old, new):
        os.link(self.place / old, self.place / new)


class Guest:
    """The same by a client that remembers nodes, as Linux does."""

    def __init__(self, place, protocol):
        self.client = protocol.client_of(place, limit=16)
        self.protocol = protocol

    def _place(self, path):
        directory, _, name = path.rpartition("/")
        return self.client.walk(directory), name

    def write(self, path, data):
        parent, name = self._place(path)
        client = self.client
        try:
            node, _ = client.lookup(parent, name)
            handle = client.open(node, os.O_RDWR | os.O_TRUNC)
        except FileNotFoundError:
            node, handle = client.create(parent, name)
        client.write(node, handle, 0, data)
        client.release(node, handle)

    def read(self, path):
        node = self.client.walk(path)
        handle = self.client.open(node, os.O_RDONLY)
        data = self.client.read(node, handle, 0, 1 << 16)
        self.client.release(node, handle)
        return data

    def unlink(self, path):
        self.client.unlink(*self._place(path))

    def rename(self, old, new):
        self.client.rename(*self._place(old), *self._place(new))

    def link(self, old, new):
        self.client.link(self.client.walk(old), *self._place(new))


class Folder(RuleBasedStateMachine):
    """The model is a dictionary of paths, whose values are lists: hard links share one."""

    place = None

    def __init__(self):
        super().__init__()
        Folder.count = getattr(Folder, "count", 0) + 1
        self.root = Folder.place / str(Folder.count)
        (self.root / "d" / "e").mkdir(parents=True)
        self.sides = [Host(self.root), Guest(self.root, fuse), Guest(self.root, ninep)]
        self.files = {}

    def _do(self, who, name, *arguments):
        try:
            return getattr(self.sides[who], name)(*arguments)
        except OSError as fault:
            return fault.errno

    @rule(who=WHO, path=NAMES, data=st.binary(max_size=300))
    def write(self, who, path, data):
        assert self._do(who, "write", path, data) is None
        self.files.setdefault(path, [b""])[0] = data

    @rule(who=WHO, path=NAMES)
    def read(self, who, path):
        expected = self.files[path][0] if path in self.files else errno.ENOENT
        assert self._do(who, "read", path) == expected

    @rule(who=WHO, path=NAMES)
    def unlink(self, who, path):
        expected = None if self.files.pop(path, None) else errno.ENOENT
        assert self._do(who, "unlink", path) == expected

    @rule(who=WHO, old=NAMES, new=NAMES)
    def rename(self, who, old, new):
        done = self._do(who, "rename", old, new)
        if old not in self.files:
            assert done == errno.ENOENT
            return
        assert done is None
        # Two names of one file both stay (rename(2)).
        if self.files.get(new) is not self.files[old]:
            self.files[new] = self.files.pop(old)

    @rule(who=WHO, old=NAMES, new=NAMES)
    def link(self, who, old, new):
        done = self._do(who, "link", old, new)
        if old not in self.files:
            assert done == errno.ENOENT
        elif new in self.files:
            assert done == errno.EEXIST
        else:
            assert done is None
            self.files[new] = self.files[old]

    @rule(who=st.sampled_from([1, 2]))
    def go_on_in_a_copy(self, who):
        """A copy's server takes up what the guest holds."""
        old = self.sides[who].client
        new = self.sides[who].protocol.client_of(self.root, limit=16)
        new.server.restore(old.server.save())
        new.root, new.shares = old.root, old.shares
        old.server.close()
        self.sides[who].client = new

    @invariant()
    def all_see_the_same(self):
        found = {}
        for path in self.root.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                found[str(path.relative_to(self.root))] = path.read_bytes()
        assert found == {path: content[0] for path, content in self.files.items()}

    def teardown(self):
        for side in self.sides[1:]:
            side.client.server.close()


def test_two_guests_and_the_host(tmp_path):
    Folder.place = tmp_path
    run_state_machine_as_test(
        Folder,
        settings=settings(max_examples=40 * FUZZ, stateful_step_count=25, deadline=None),
    )
