"""Make data/xfs-linux.img.xz: an XFS whose directories and files Linux itself has made.

    python -m tests.image.fs.make_linux_xfs

mkfs.xfs fills no file system in all the ways that Linux does. A machine with the default guest's
kernel and its xfs module mounts what that made and runs `SCRIPT`. What comes of it is in `tree()`.
Blocks of 1 KiB make for many of them: directories of 4 KiB lie in pieces, trees of extents have
two levels.
"""

import lzma
import os
import stat
import tempfile
from pathlib import Path

from ringzero import Machine
from ringzero.image import micro
from ringzero.image.fs.contract import open_file_system
from tests.image.fs.made import Image, part, run, sized

TARGET = Path(__file__).parent / "data" / "xfs-linux.img.xz"
SIZE = 24 << 20
# Directories by how many entries they get: in the inode, in one block, with a leaf, with nodes.
DIRECTORIES = {"short": 3, "block": 20, "leaf": 200, "node": 700}
THINNED, MIXED = 700, 2000
NAME = "entry-%d-with-a-name-of-some-length"
SPARSE, PIECES = "sparse", 300
LONG = "/" + "/".join(["a-folder-with-a-name"] * 40)
# All entries are one file, so that the image is small. Between the blocks of "mixed" lie those of
# another file, so that it has many extents.
SCRIPT = f"""set -e
modprobe xfs
mount -t xfs /dev/vda /mnt
cd /mnt
echo small >small
fill() {{
    mkdir $1
    seq $2 | while read n; do ln small $1/entry-$n-with-a-name-of-some-length; done
}}
{"".join(f"fill {name} {count}; " for name, count in DIRECTORIES.items())}
fill thinned {THINNED}
seq 1 2 {THINNED} | while read n; do rm thinned/entry-$n-with-a-name-of-some-length; done
mkdir mixed
seq {MIXED} | while read n; do
    ln small mixed/entry-$n-with-a-name-of-some-length
    [ $((n % 40)) = 0 ] && seq 500 >>between && sync
done
seq {PIECES} | while read n; do
    printf %04d $n | dd of={SPARSE} bs=1024 seek=$((n * 3)) conv=notrunc 2>/dev/null
    echo $n >>other
    sync
done
fallocate -l 100000 kept
printf here | dd of=kept bs=1 seek=50000 conv=notrunc 2>/dev/null
seq 60000 >numbers
ln small again
ln -s small link
ln -s {LONG} long
mkfifo fifo
mknod device c 1 3
mkdir -p deep/er/still
echo deep >deep/er/still/file
cd /
cp /dev/vda /tmp/mounted 2>/dev/null || true
umount /mnt
"""


def tree() -> dict[str, tuple[int, bytes]]:
    """Return what is there by path: the kind of each, and the content of files and links."""
    file, folder, link = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
    found: dict[str, tuple[int, bytes]] = {
        "/small": (file, b"small\n"),
        "/again": (file, b"small\n"),
        "/link": (link, b"small"),
        "/long": (link, LONG.encode()),
        "/fifo": (stat.S_IFIFO, b""),
        "/device": (stat.S_IFCHR, b""),
        "/deep": (folder, b""),
        "/deep/er": (folder, b""),
        "/deep/er/still": (folder, b""),
        "/deep/er/still/file": (file, b"deep\n"),
        "/numbers": (file, _lines(60000)),
        "/kept": (file, bytes(50000) + b"here" + bytes(49996)),
        "/other": (file, _lines(PIECES)),
    }
    pieces = bytearray(PIECES * 3 * 1024 + 4)
    for n in range(1, PIECES + 1):
        pieces[n * 3 * 1024 : n * 3 * 1024 + 4] = b"%04d" % n
    found[f"/{SPARSE}"] = (file, bytes(pieces))
    found["/between"] = (file, _lines(500) * (MIXED // 40))
    entries = {f"/{name}": range(1, count + 1) for name, count in DIRECTORIES.items()}
    entries |= {"/thinned": range(2, THINNED + 1, 2), "/mixed": range(1, MIXED + 1)}
    for name, numbers in entries.items():
        found[name] = (folder, b"")
        found |= {f"{name}/{NAME % n}": (file, b"small\n") for n in numbers}
    return found


def _lines(count: int) -> bytes:
    return "".join(f"{n}\n" for n in range(1, count + 1)).encode()


def main() -> None:
    micro.MODULES = (*micro.MODULES, "xfs")
    image = micro.ensure(micro.Recipe("xfs"))
    # mkfs.xfs refuses to make what is smaller than 300 MB but for its own tests.
    tests = os.environ | {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = sized(Path(folder) / "disk", SIZE)
        run("mkfs.xfs", "-q", "-b", "size=1024", "-L", "linux", path, env=tests)
        with Machine(
            kernel=image.kernel, initrd=image.initrd, command_line=image.command_line,
            agent=True, memory="256M", disks=[f"{path},format=raw"],
        ) as machine:  # fmt: skip
            done = machine.run(["sh", "-c", SCRIPT], text=True)
            assert done.returncode == 0, done.stderr
            copy = Path(folder) / "mounted"
            machine.copy_out("/tmp/mounted", copy)
        (warning,) = open_file_system(part(Image(copy))).warnings
        assert "log has not been replayed" in warning
        TARGET.write_bytes(lzma.compress(path.read_bytes(), preset=9))
    micro.remove("xfs")


if __name__ == "__main__":
    main()
