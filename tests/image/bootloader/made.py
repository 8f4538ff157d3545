"""File systems and disks in memory, for what reads a boot loader's files."""

import stat

from ringzero.image.bootloader.contract import Volume, Volumes
from ringzero.image.fs.contract import FileSystem, Node
from ringzero.image.partitions import Partition
from tests.image.fs.made import part


class Files(FileSystem):
    """A file system of a dictionary: paths without the leading slash, and contents."""

    name = "files"

    def __init__(self, content, *, uuid="", label="", name="partition 1"):
        super().__init__(part(b""))
        self.source.name = name
        self.uuid, self.label = uuid, label
        self.tree = {}
        for path, data in content.items():
            *above, last = path.strip("/").split("/")
            place = self.tree
            for step in above:
                place = place.setdefault(step, {})
            place[last] = data.encode() if isinstance(data, str) else data

    @classmethod
    def probe(cls, source):
        return False

    def root(self):
        return self.node(())

    def _at(self, key):
        place = self.tree
        for step in key:
            place = place[step]
        return place

    def node(self, key):
        found = self._at(key)
        if isinstance(found, dict):
            return Node(key, stat.S_IFDIR | 0o755, 0)
        return Node(key, stat.S_IFREG | 0o644, len(found))

    def entries(self, directory):
        for name in self._at(directory.key):
            yield name.encode(), (*directory.key, name)

    def content(self, node, offset, length):
        return self._at(node.key)[offset : offset + length]


def volume(number, content, **names):
    place = Partition(number, 1 << 20, 1 << 20, "83")
    return Volume(place, Files(content, name=f"partition {number}", **names))


def volumes(*found, root=0):
    return Volumes(found, found[root] if found else None)
