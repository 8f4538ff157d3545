"""EROFS images: read back by erofs-utils, and by Linux itself."""

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile

import pytest

from ringzero.errors import GuestImageError
from ringzero.image.erofs import content, writer
from ringzero.image.fs.contract import open_file_system
from ringzero.image.layers.tar import Stream
from ringzero.image.layers.tree import Tree
from tests.image.fs.made import Image, part
from tests.image.oci.images import tar

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
UUID = bytes(range(16))
peer = pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs erofs-utils")


def image(tmp_path, files, name="image"):
    """Write the image of one layer, which comes in odd pieces; return its path and the tree."""
    data = files if isinstance(files, bytes) else tar(files)
    pieces = (data[at : at + 70_001] for at in range(0, len(data), 70_001))
    tree = Tree(100_000)
    path = tmp_path / f"{name}.erofs"
    with path.open("w+b") as file:
        members, size = content.place(Stream(pieces), file.fileno(), writer.FIRST)
        tree.apply(members, 0)
        end = writer.FIRST + size
        size = writer.write(tree.root, [writer.FIRST], file, end, UUID, "test")
    assert path.stat().st_size == size
    return path, tree


def extract(path, target):
    done = subprocess.run(["fsck.erofs", f"--extract={target}", path], capture_output=True)
    assert done.returncode == 0, done.stderr
    return target


SIZES = (0, 1, 1024, 1025, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 100_000)


@pytest.mark.peer
@peer
def test_files_of_all_sizes(tmp_path):
    files = {f"{size}": os.urandom(size) for size in SIZES}
    path, _ = image(tmp_path, files)
    out = extract(path, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == files


@pytest.mark.peer
@peer
def test_directories_of_all_sizes(tmp_path):
    names = [f"{n:05}-{'x' * (n * 7 % 200)}" for n in range(3000)]
    files = {f"big/{name}": b"" for name in names} | {f"small{n}/f": b"" for n in range(300)}
    path, _ = image(tmp_path, files)
    out = extract(path, tmp_path / "out")
    assert sorted(p.name for p in (out / "big").iterdir()) == sorted(names)
    assert len(list(out.iterdir())) == 301


@pytest.mark.peer
@peer
def test_links(tmp_path):
    long = "t" * 4000
    path, _ = image(tmp_path, {"f": b"1", "h": ("=", "f"), "l": ("->", "f"), "long": ("->", long)})
    out = extract(path, tmp_path / "out")
    assert (out / "l").readlink().name == "f" and (out / "long").readlink().name == long
    told = subprocess.run(
        ["dump.erofs", "--path=/f", path], capture_output=True, text=True, check=True
    ).stdout
    assert "Links: 2" in told


@pytest.mark.peer
@peer
def test_owners_modes_and_times(tmp_path):
    info = tarfile.TarInfo("f")
    info.uid, info.gid, info.mode, info.mtime = 100_000, 200_000, 0o4751, 1_700_000_000
    # What dump.erofs shows of a mode are its last nine bits.
    path, _ = image(tmp_path, {"f": info})
    told = subprocess.run(
        ["dump.erofs", "--path=/f", path], capture_output=True, text=True, check=True,
        env=os.environ | {"TZ": "UTC"},
    ).stdout  # fmt: skip
    assert "Uid: 100000   Gid: 200000  Access: 0751" in told
    assert "2023-11-14 22:13:20" in told


def test_equal_layers_make_equal_images_and_zeros_are_holes(tmp_path):
    files = {"a/b": b"1", "zeros": bytes(8 << 20), "half": bytes(5000) + b"x" * 5000, "f": b"f"}
    one, _ = image(tmp_path, files, "one")
    two, _ = image(tmp_path, files, "two")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_blocks * 512 < 1 << 20


def test_an_archive_that_is_cut_short(tmp_path):
    data = tar({"f": b"x" * 10_000})
    for end in (600, 5000, 512 + 9_000, 512 + 9_999):
        with pytest.raises(GuestImageError, match="cut short"):
            image(tmp_path, data[:end])


def test_ranges_are_copied_where_the_kernel_copies_none(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    data = bytes(3 << 20) + os.urandom(5000)
    (tmp_path / "source").write_bytes(data)
    for name in ("kernel", "here"):
        with (tmp_path / "source").open("rb") as source, (tmp_path / name).open("w+b") as target:
            content.copy(source.fileno(), target.fileno(), 4096, len(data))
        assert (tmp_path / name).read_bytes() == bytes(4096) + data
        monkeypatch.setattr(os, "copy_file_range", refuse)


def node_with(attributes):
    info = tarfile.TarInfo("f")
    info.size = 3
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in attributes.items()}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


@pytest.mark.peer
@peer
@pytest.mark.parametrize("size", [0, 1, 4, 3000, 5000])
def test_extended_attributes_are_sound(tmp_path, size):
    data = node_with({"user.a": "v" * size, "security.selinux": "label", "odd.kind": "x"})
    path, tree = image(tmp_path, data)
    assert tree.find(b"f").xattrs[b"user.a"] == b"v" * size
    assert (extract(path, tmp_path / "out") / "f").read_bytes() == b"abc"


@pytest.mark.boot
@pytest.mark.engine
def test_linux_reads_it(tmp_path):
    import ringzero

    device = tarfile.TarInfo("null")
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
    program = tarfile.TarInfo("program")
    program.mode, program.uid = 0o4711, 1000
    files = {f"d/{n}": os.urandom(size) for n, size in enumerate(SIZES)}
    path, tree = image(tmp_path, {**files, "null": device, "program": program, "l": ("->", "d/0")})
    import hashlib

    script = (
        "modprobe erofs && mount -t erofs /dev/vda /mnt && cd /mnt && "
        "sha256sum d/* && ls -ln null l program"
    )
    with ringzero.Machine(image="micro", disks=[f"{path},ro"]) as machine:
        done = machine.run(["sh", "-c", script], text=True)
    for name, data in files.items():
        assert f"{hashlib.sha256(data).hexdigest()}  {name}\n" in done.stdout
    assert "1,   3" in done.stdout and "l -> d/0" in done.stdout
    assert "-rws--x--x    1 1000" in done.stdout
    assert stat.S_ISCHR(tree.find(b"null").mode)


@pytest.mark.parametrize("seed", range(5 * FUZZ))
def test_random_trees_come_back(tmp_path, seed):
    """Written by us and read by us, whose reader other tests compare with mkfs.erofs."""
    random_ = random.Random(seed)
    files, folders = {}, [""]
    for number in range(random_.choice((0, 3, 400))):
        name = f"{random_.choice(folders)}{number}{'n' * random_.choice((0, 1, 100, 200))}"
        kind = random_.randrange(5)
        if kind == 0:
            files[name] = None
            folders.append(f"{name}/")
        elif kind == 1:
            files[name] = ("->", "t" * random_.choice((1, 60, 4000)))
        else:
            data = random_.randbytes(random_.choice((*SIZES, 200)))
            files[name] = data if random_.random() < 0.8 else bytes(len(data))
    path, _ = image(tmp_path, files)
    found = open_file_system(part(Image(path)))
    seen = dict(found.walk("/"))
    assert set(seen) == {f"/{name}" for name in files}
    for name, data in files.items():
        if data is None:
            assert seen[f"/{name}"].is_directory
        elif isinstance(data, tuple):
            assert found.readlink(f"/{name}") == data[1]
        else:
            assert found.read(f"/{name}") == data


def test_fuzz_changed_layers_make_sound_images(tmp_path):
    """A layer with wrong bytes is refused, or makes an image that can be read to its end."""
    random_ = random.Random(7)
    info = tarfile.TarInfo("n" * 200)
    info.pax_headers = {"mtime": "1.5", "SCHILY.xattr.user.a": "b" * 200}
    whole = tar({"d": None, "n" * 200: info, "d/f": b"c" * 5000, "l": ("->", "d"), "l/g": b"g",
                 "h": ("=", "d/f"), ".wh.x": b""})  # fmt: skip
    for _ in range(60 * FUZZ):
        data = bytearray(whole)
        at = random_.randrange(0, len(data), 512)
        for _ in range(random_.choice((1, 2, 6))):
            data[at + random_.randrange(500)] = random_.choice((0, 0x7F, 0xFF, 0x31, 0x80))
        if random_.random() < 0.8:
            # With a sum that is right, more comes through.
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        try:
            path, _ = image(tmp_path, bytes(data))
        except GuestImageError:
            continue
        found = open_file_system(part(Image(path)))
        for name, node in found.walk("/"):
            if node.is_file:
                assert len(found.read(name)) == node.size
            elif node.is_link:
                assert found.readlink(name)
