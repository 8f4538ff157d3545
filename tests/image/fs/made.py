"""File systems made by their own tools from one tree, which is what the readers must give back."""

import os
import shutil
import stat
import subprocess

import pytest

from ringzero.image.source import Part


class Bytes:
    """A source in memory."""

    def __init__(self, data):
        self.data = data

    @property
    def size(self):
        return len(self.data)

    def read(self, offset, length):
        assert 0 <= offset <= offset + length <= len(self.data)
        return bytes(self.data[offset : offset + length])


class Image:
    """A source in a file, of which single bytes may read as others, or the end be missing."""

    def __init__(self, path, changes=None, size=None):
        self.file = path.open("rb")
        self.size = path.stat().st_size if size is None else size
        self.changes = changes or {}

    def read(self, offset, length):
        assert 0 <= offset <= offset + length <= self.size
        data = bytearray(os.pread(self.file.fileno(), length, offset))
        assert len(data) == length
        for at, byte in self.changes.items():
            if offset <= at < offset + length:
                data[at - offset] = byte
        return bytes(data)


def part(source):
    source = Bytes(source) if isinstance(source, (bytes, bytearray)) else source
    return Part(source, 0, source.size, "the image")


def make_tree(root):
    """Fill `root`: small and large files, holes, links, long names, a directory of many entries."""
    root.mkdir()
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(b"hello\n")
    (root / "tail").write_bytes(bytes(range(256)) * 20 + b"end")
    (root / "large").write_bytes(os.urandom(700_000) + b"A" * 300_000)
    with (root / "sparse").open("wb") as file:
        file.write(b"first")
        file.seek(400_000)
        file.write(b"last")
    below = root / "etc" / "deep" / "er"
    below.mkdir(parents=True)
    (below / "file").write_text("deep\n")
    many = root / "many"
    many.mkdir()
    for number in range(600):
        (many / f"entry-{number:04}-with-a-name-of-some-length").write_bytes(b"%d" % number)
    (root / ("n" * 200)).write_text("long name\n")
    return root


def add_links(root):
    (root / "link").symlink_to("small")
    (root / "absolute").symlink_to("/etc/deep/er/file")
    (root / "up").symlink_to("etc/deep/../../../../small")
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "long").symlink_to("/" + "/".join(["etc/.."] * 30) + "/small")
    return root


def tool(name):
    found = shutil.which(name, path=os.environ["PATH"] + ":/sbin:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command, **more):
    done = subprocess.run(
        [tool(command[0]), *map(str, command[1:])], capture_output=True, timeout=120, **more
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def sized(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


def ext(*options, size=8 << 20):
    def make(tree, path):
        run("mke2fs", "-q", "-F", *options, "-L", "made", "-d", tree, sized(path, size))

    return make


def xfs(*options, size=400 << 20):
    def make(tree, path):
        proto = path.with_suffix(".proto")
        proto.write_text(prototype(tree))
        # What is smaller than 300 MB is made for mkfs.xfs' own tests alone.
        tests = os.environ | {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
        command = ("mkfs.xfs", "-q", *options, "-L", "made", "-p", proto, sized(path, size))
        run(*command, env=tests)

    return make


def prototype(tree):
    """Return what mkfs.xfs reads a tree from: owners and modes are kept, but for sticky bits.

    It has no way to write a name with a space, or a socket; those are left out.
    """
    lines = ["/nothing", "1 1"]

    def add(path, name):
        status = path.lstat()
        bits = status.st_mode
        kind = {stat.S_IFDIR: "d", stat.S_IFREG: "-", stat.S_IFLNK: "l"}.get(stat.S_IFMT(bits))
        if kind is None or " " in name:
            return
        set_ids = ("u" if bits & stat.S_ISUID else "-") + ("g" if bits & stat.S_ISGID else "-")
        words = [name, f"{kind}{set_ids}{bits & 0o777:03o}", status.st_uid, status.st_gid]
        if kind == "l":
            words.append(path.readlink())
        elif kind == "-":
            words.append(path)
        lines.append(" ".join(map(str, words)).strip())
        if kind == "d":
            for entry in sorted(path.iterdir()):
                add(entry, entry.name)
            lines.append("$")

    add(tree, "")
    return "\n".join([*lines, ""])


def gpt(path, *parts):
    """Make a raw disk of file systems in files, each with its GPT type; the files are removed."""
    script, start = "label: gpt\n", 2048
    starts = []
    for kind, part in parts:
        count = part.stat().st_size // 512
        script += f"start={start}, size={count}, type={kind}\n"
        starts.append(start)
        start += -(-count // 2048) * 2048
    run("sfdisk", "-q", sized(path, (start + 2048) * 512), input=script.encode())
    for (_, part), first in zip(parts, starts, strict=True):
        run("dd", f"if={part}", f"of={path}", "bs=1M", f"seek={first // 2048}",
            "conv=notrunc,sparse", "status=none")  # fmt: skip
        part.unlink()
    return path


def btrfs(*options, size=160 << 20):
    def make(tree, path):
        sized(path, size)
        run("mkfs.btrfs", "-q", *options, "-L", "made", "--rootdir", tree, path)

    return make


def erofs(*options):
    def make(tree, path):
        run("mkfs.erofs", "--quiet", *options, path, tree)

    return make


def squashfs(*options):
    def make(tree, path):
        run("mksquashfs", tree, path, "-quiet", "-no-progress", *options)

    return make


def fat(*options, size=8 << 20):
    def make(tree, path):
        run("mkfs.vfat", *options, "-n", "MADE", sized(path, size))
        entries = [entry for entry in tree.iterdir() if not entry.is_symlink()]
        run("mcopy", "-s", "-Q", "-i", path, *entries, "::/")

    return make


def same(files, tree, *, links=True, modes=True):
    """Assert that `files` holds what the directory `tree` does, byte for byte."""
    seen = {}
    for path, node in files.walk("/"):
        if not path.startswith("/lost+found"):
            seen[path] = node
    all_ = [path for path in tree.rglob("*") if links or not path.is_symlink()]
    wanted = {f"/{path.relative_to(tree)}": path for path in all_}
    assert set(seen) == set(wanted)
    for path, real in wanted.items():
        node = seen[path]
        status = real.lstat()
        if modes:
            assert node.mode == status.st_mode, path
        if real.is_symlink():
            assert files.readlink(path) == str(real.readlink())
        elif real.is_file():
            assert node.size == status.st_size, path
            assert files.read(path) == real.read_bytes(), path
    large = (tree / "large").read_bytes()
    for offset, length in ((0, 1), (4095, 2), (123_457, 65_537), (999_999, 100), (10**7, 5)):
        assert files.read("/large", offset, length) == large[offset : offset + length]
    assert files.listing("/many") == sorted(os.listdir(tree / "many"))
    assert not files.exists("/many/none")
    if links:
        assert files.read("/link") == files.read("/up") == files.read("/long") == b"hello\n"
        assert files.read("/absolute") == b"deep\n"
