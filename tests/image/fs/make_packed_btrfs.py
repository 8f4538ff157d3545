"""Make data/btrfs-packed.img.xz: a btrfs with files that Linux itself has compressed.

    python -m tests.image.fs.make_packed_btrfs

mkfs.btrfs of Debian 12 compresses nothing. A machine with the default guest's kernel and its btrfs
module mounts what that made, once for each compression, and writes the files of `CONTENT`.
"""

import lzma
import tempfile
from pathlib import Path

from ringzero import Machine
from ringzero.image import micro
from tests.image.fs.made import run, sized

TARGET = Path(__file__).parent / "data" / "btrfs-packed.img.xz"
COMPRESSIONS = ("lzo", "zlib", "zstd")
# How a shell makes each file, and what is in it.
CONTENT = {
    "numbers": ("seq 1 60000", "".join(f"{n}\n" for n in range(1, 60001)).encode()),
    "inline": ("seq 1 300", "".join(f"{n}\n" for n in range(1, 301)).encode()),
    "tail": ("yes hello | head -c 5001", (b"hello\n" * 1000)[:5001]),
    "runs": ("yes '' | head -c 200000", b"\n" * 200000),
}


def main() -> None:
    micro.MODULES = (*micro.MODULES, "btrfs")
    image = micro.ensure(micro.Recipe("btrfs"))
    with tempfile.TemporaryDirectory() as folder:
        path = sized(Path(folder) / "disk", 24 << 20)
        run("mkfs.btrfs", "-q", "--mixed", "-L", "packed", path)
        lines = ["set -e", "modprobe btrfs"]
        for how in COMPRESSIONS:
            lines += [f"mount -t btrfs -o compress-force={how} /dev/vda /mnt", f"mkdir /mnt/{how}"]
            lines += [f"{command} > /mnt/{how}/{name}" for name, (command, _) in CONTENT.items()]
            lines += ["umount /mnt"]
        with Machine(
            kernel=image.kernel, initrd=image.initrd, command_line=image.command_line,
            agent=True, disks=[f"{path},format=raw"],
        ) as machine:  # fmt: skip
            done = machine.run(["sh", "-c", "\n".join(lines)], text=True)
            assert done.returncode == 0, done.stderr
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_bytes(lzma.compress(path.read_bytes(), preset=9))
    micro.remove("btrfs")


if __name__ == "__main__":
    main()
