"""Layers in parts: they make what the layer makes, and change no more than has changed."""

import io
import random
import stat

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ringzero.build import partition as module
from ringzero.build.archives import members
from ringzero.build.entries import Entry, write
from ringzero.build.partition import partition
from ringzero.errors import GuestImageError
from ringzero.image.layers import tar
from ringzero.image.layers.tree import Tree
from tests.build.packages import Distribution

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o750, stat.S_IFLNK | 0o777
KIB = 1 << 10


def file(name, data=b"", **fields):
    return Entry(name, FILE, size=len(data), content=lambda: iter((data,)), **fields)


def written(entries):
    out = io.BytesIO()
    write(entries, out, 1 << 62)
    return memoryview(out.getvalue())


def shape(archives):
    """Return what layers make of each other, by path, hard links by the first of their names."""
    tree = Tree(10_000)
    for number, archive in enumerate(archives):
        tree.apply(tar.read(archive), number)
    found, first = {}, {}
    todo = [(b"", tree.root)]
    while todo:
        above, node = todo.pop()
        for name, child in sorted((node.children or {}).items()):
            path = above + b"/" + name
            data = bytes(archives[child.layer][child.offset : child.offset + child.size])
            found[path] = (
                *(child.mode, child.uid, child.gid, child.mtime, child.target, child.xattrs),
                *(child.device, data, first.setdefault(id(child), path)),
            )
            todo.append((path, child))
    return found


NAMES = st.lists(
    st.sampled_from([b"a", b"b", b"c", b"usr", b"var", b"log"]), min_size=1, max_size=4
)


@st.composite
def layers(draw):
    """Draw the entries of a layer as builds make them, and of some that they do not make."""
    found: dict[bytes, Entry] = {}
    for parts in draw(st.lists(NAMES, max_size=25)):
        name = b"/".join(parts)
        kind = draw(
            st.sampled_from(["file", "file", "directory", "link", "hard", "gone", "opaque"])
        )
        owner = {"uid": draw(st.integers(0, 3)), "gid": 7, "mtime": draw(st.integers(0, 9))}
        files = sorted(n for n, e in found.items() if e.mode and stat.S_ISREG(e.mode))
        if kind == "file":
            data = bytes([len(found)]) * draw(st.integers(0, 3 * KIB))
            xattrs = {b"user.x": b"1"} if draw(st.booleans()) else None
            found[name] = file(name, data, xattrs=xattrs, **owner)
        elif kind == "directory":
            found[name] = Entry(name, DIRECTORY, **owner)
        elif kind == "link":
            found[name] = Entry(name, LINK, link=b"/".join(draw(NAMES)), **owner)
        elif kind == "hard" and files:
            found[name] = Entry(name, 0, link=draw(st.sampled_from(files)))
        elif kind in ("gone", "opaque"):
            *above, last = parts
            mark = b".wh." + last if kind == "gone" else b".wh..wh..opq"
            path = b"/".join([*above, mark])
            found[path] = file(path)
    return list(found.values())


def is_real(archive, layer):
    """Whether names of a layer lead through no link and file of the layer below, as of a build."""
    tree = Tree(10_000)
    tree.apply(tar.read(archive), 0)
    own = {entry.name for entry in layer if stat.S_ISDIR(entry.mode)}
    for entry in layer:
        node, name = tree.root, b""
        for part in entry.name.split(b"/")[:-1]:
            name += b"/" * bool(name) + part
            node = (node.children or {}).get(part) if node is not None else None
            if node is not None and node.children is None:
                if name not in own:
                    return False
                node = None
    return True


def names(parts):
    return [(part.owner, sorted(entry.name for entry in part.entries)) for part in parts]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "_SMALL", KIB)


@pytest.mark.usefixtures("small")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers(), layers(), st.integers(3, 9))
def test_parts_make_what_the_layer_makes(below, layer, most):
    parts = partition(layer, most)
    assert names(parts) == names(partition(layer[::-1], most))
    assert len(parts) <= most
    archives = [written(below), written(layer)]
    try:
        assume(is_real(archives[0], layer))
        wanted = shape(archives)
    except GuestImageError:
        return
    cut = [written(part.entries) for part in parts]
    assert shape([archives[0], *(cut or archives[1:])]) == wanted


@pytest.mark.usefixtures("small")
def test_what_is_cut_and_where():
    big, noise = b"x" * 3 * KIB, b"y" * 300
    layer = [
        file(b"var/lib/dpkg/info/one.list", b"/usr/bin/one\n/usr/share/one\n"),
        *(
            Entry(name, DIRECTORY, uid=4, mtime=9)
            for name in (b"usr", b"usr/bin", b"usr/share", b"empty")
        ),
        file(b"usr/bin/one", big),
        file(b"usr/share/one", big),
        Entry(b"hard", 0, link=b"./usr/bin/one"),
        file(b"usr/bin/.wh.gone"),
        file(b"var/log/said", noise),
        file(b"www/page", noise),
        file(b"data/large", big),
        file(b"data/small", noise),
    ]
    gone, *buckets, data, one, last = partition(layer, 20)
    assert [e.name for e in gone.entries] == [b"usr/bin/.wh.gone", b"usr/bin", b"usr"]
    assert {e.name: e.mtime for e in last.entries} == {
        **dict.fromkeys((b"empty", b"usr", b"usr/bin", b"usr/share"), 9),
        b"var/log/said": 1 << 62,
    }
    # Its files are a part, with the directories on the way and their owners.
    assert (data.owner, [e.name for e in data.entries]) == ("/data/large", [b"data/large"])
    assert one.owner == "deb:one"
    above = {e.name: (e.uid, e.mtime) for e in one.entries if stat.S_ISDIR(e.mode)}
    assert above == dict.fromkeys((b"usr", b"usr/bin", b"usr/share"), (4, 0))
    assert {e.name for e in one.entries if not stat.S_ISDIR(e.mode)} == {
        *(b"usr/bin/one", b"usr/share/one", b"hard", b"var/lib/dpkg/info/one.list"),
    }
    rest = {e.name for part in buckets for e in part.entries}
    assert rest == {b"www/page", b"data/small"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "odd",
    [
        [file(b"a", b"2" * 9000)],
        [file(b"a/b")],
        [Entry(b"l", 0, link=b"below/it")],
        [Entry(b"l", 0, link=b"m"), Entry(b"m", 0, link=b"l")],
    ],
    ids=["twice", "below a file", "a link to another layer's", "links in a circle"],
)
def test_what_would_be_something_else_in_parts_stays_whole(odd):
    assert partition([file(b"b", b"1" * 9000)], 9)
    assert not partition([file(b"a", b"1" * 9000), *odd], 9)


def test_small_layers_stay_whole():
    assert not partition([file(b"a", b"1" * 400_000)], 64)
    assert not partition([], 64)
    assert not partition([file(b"a", b"1" * 9_000_000)], 2)


@pytest.mark.parametrize("most", [3, 8, 64])
def test_no_more_parts_than_there_may_be(most):
    sizes = random.Random(1)
    layer = [file(b"d%d/%d" % (n % 40, n), b"1" * sizes.randrange(300_000)) for n in range(300)]
    parts = partition(layer, most)
    assert 1 < len(parts) <= most
    told = [e.name for part in parts for e in part.entries]
    assert sorted(told) == sorted(entry.name for entry in layer)


def test_a_changed_package_changes_its_part_and_the_last(tmp_path):
    made = random.Random(2)
    sizes = {f"p{n}": int(min(2e6, 15_000 * made.paretovariate(0.9))) for n in range(100)}
    some = Distribution({**sizes, "it": 1_000_000})
    found = []
    for version in (1, 2):
        some.write(tmp_path, it=version)
        paths = [path for path in tmp_path.rglob("*") if path.is_file()]
        layer = [file(bytes(path.relative_to(tmp_path)), path.read_bytes()) for path in paths]
        # Directories have the time of the last change in them.
        layer += [Entry(name, DIRECTORY, mtime=version) for name in (b"usr", b"usr/bin", b"var")]
        parts = partition(layer, 64)
        assert len(parts) > 20
        found.append({bytes(written(part.entries)): part.owner for part in parts})
    new = [owner for data, owner in found[1].items() if data not in found[0]]
    assert sorted(new) == ["", "deb:it:amd64"]


def test_entries_of_an_archive_are_cut_as_those_of_a_step():
    layer = [file(b"a/%d" % n, b"1" * 200_000) for n in range(9)]
    assert names(partition(list(members(written(layer))), 64)) == names(partition(layer, 64))
