"""Layers on each other: whiteouts, opaque directories, links, and what must not lead out."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.layers.tar import read
from ringzero.image.layers.tree import Tree
from tests.image.oci.images import tar


def merged(*layers, limit=1000):
    tree = Tree(limit)
    for number, layer in enumerate(layers):
        tree.apply(read(memoryview(tar(layer))), number)
    return tree


def names(tree, path=b"/"):
    node = tree.find(path)
    return sorted(name.decode() for name in node.children)


def test_a_whiteout_hides_what_is_below_and_nothing_beside_it():
    tree = merged({"a": b"1", "b": b"2", "d/x": b"3"}, {".wh.a": b"", "d/.wh.x": b"", "d/y": b"4"})
    assert names(tree) == ["b", "d"]
    assert names(tree, b"d") == ["y"]


@pytest.mark.parametrize("late", [True, False])
def test_an_opaque_directory_in_any_order(late):
    upper = {"d": None, "d/.wh..wh..opq": b"", "d/new": b""}
    if late:
        upper = {"d": None, "d/new": b"", "d/.wh..wh..opq": b""}
    tree = merged({"d/old": b"", "d/e/f": b""}, upper)
    assert names(tree, b"d") == ["new"]


def test_a_whiteout_and_its_name_in_one_layer():
    tree = merged({"d/old": b""}, {"d": None, "d/new": b"", ".wh.d": b""})
    assert names(tree, b"d") == ["new"]


def test_files_replace_directories_and_the_other_way_round():
    tree = merged({"a/b": b"", "c": b""}, {"a": b"file"})
    assert tree.find(b"a").children is None
    with pytest.raises(GuestImageError):
        merged({"c": b""}, {"c/d": b""})
    assert names(merged({"c": b""}, {"c": None, "c/d": b""}), b"c") == ["d"]


def test_a_directory_told_again_keeps_what_is_in_it():
    assert names(merged({"d/f": b""}, {"d": None}), b"d") == ["f"]


def test_hard_links_are_one_node_over_layers():
    tree = merged({"f": b"content"}, {"g": ("=", "f"), "h": ("=", "/g")})
    assert tree.find(b"f") is tree.find(b"g") is tree.find(b"h")
    upper = merged({"f": b"1", "g": ("=", "f")}, {"f": b"2"})
    assert upper.find(b"f") is not upper.find(b"g")


@pytest.mark.parametrize(
    "layer",
    [
        {"../f": b""},
        {"a/../../f": b""},
        {"h": ("=", "none")},
        {"d": None, "h": ("=", "d")},
        {"h": ("=", "../../etc/passwd")},
        {"x" * 256: b""},
        {"a": ("->", "b"), "b": ("->", "a"), "a/f": b""},
        {".wh.": b""},
        {".wh...": b""},
    ],
)
def test_hostile_layers(layer):
    with pytest.raises(GuestImageError):
        merged(layer)


def test_links_never_lead_out_of_the_tree():
    tree = merged({"out": ("->", "../../../../etc"), "out/passwd": b"ours"})
    assert names(tree) == ["etc", "out"]
    assert names(tree, b"etc") == ["passwd"]
    assert names(merged({"/abs": b"", "./rel": b""})) == ["abs", "rel"]


def test_the_number_of_files_is_bounded():
    with pytest.raises(GuestImageError, match="more than 5 files"):
        merged({str(n): b"" for n in range(6)}, limit=5)


def test_notes_of_overlay_file_systems_are_not_taken():
    import tarfile

    info = tarfile.TarInfo("d")
    info.type = tarfile.DIRTYPE
    info.pax_headers = {
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.kept": "y",
    }
    assert merged({"d": info}).find(b"d").xattrs == {b"user.kept": b"y"}


FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
PARTS = st.sampled_from(["a", "b", ".wh.a", ".wh..wh..opq", ".", ".."])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
CONTENT = st.one_of(st.none(), st.just(b"x"), PATHS.map(lambda p: ("->", p)),
                    PATHS.map(lambda p: ("=", p)))  # fmt: skip
LAYERS = st.lists(st.dictionaries(PATHS, CONTENT, max_size=5), max_size=4)


@settings(max_examples=100 * FUZZ)
@given(LAYERS)
def test_fuzz_any_layers_make_a_tree_or_an_error_of_ours(layers):
    try:
        tree = merged(*layers)
    except GuestImageError:
        return
    todo = [tree.root]
    while todo:
        node = todo.pop()
        for name, child in (node.children or {}).items():
            assert name not in (b"", b".", b"..") and not name.startswith(b".wh.")
            todo.append(child)
