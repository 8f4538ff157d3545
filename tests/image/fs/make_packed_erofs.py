"""Make data/erofs-*.img.xz: EROFS images, packed as mkfs.erofs of Debian 12 packs none.

    python -m tests.image.fs.make_packed_erofs MKFS...

MKFS is the command of mkfs.erofs 1.8 or later (Debian 13: 1.8.6), with LZMA, DEFLATE and zstd.
"""

import hashlib
import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / "data"
# By the name of the image: what packs it, and other options.
PACKINGS = {
    "lzma": ("-zlzma,level=6", "-C4096"),
    "lzma-tails": ("-zlzma,level=6", "-C65536", "-Eztailpacking"),
    "deflate": ("-zdeflate,level=9", "-C16384"),
    "zstd": ("-zzstd,level=9", "-C16384"),
    "zstd-tails": ("-zzstd,level=9", "-C4096", "-Eztailpacking"),
}
_RANDOM = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(160))
_NUMBERS = "".join(f"{n}\n" for n in range(1, 6001)).encode()
CONTENT = {
    "numbers": _NUMBERS,
    "inline": _NUMBERS[:700],
    "runs": b"\n" * 200_000,
    # It does not pack, and stands between what does.
    "mixed": _NUMBERS[:9000] + _RANDOM + _NUMBERS[:9000],
}
# Last pieces of files, or whole ones, in one file; pieces of which several files have a part.
SHARING = {
    "fragments": ("-zdeflate,level=9", "-C4096", "-Efragments"),
    "fragments-all": ("-zzstd,level=9", "-C4096", "-Eall-fragments,dedupe"),
    "shared": ("-zlz4hc", "-C4096", "-Ededupe"),
    "shared-tails": ("-zlzma,level=6", "-C4096", "-Ededupe,ztailpacking"),
    "shared-fragments": ("-zlz4hc", "-C8192", "-Efragments,dedupe"),
}
_LINES = b"".join(b"%d lines of %d\n" % (n, n * n % 251) for n in _RANDOM[:3400])
SHARED = {
    **CONTENT,
    "lines": _LINES,
    "again": _LINES[9000:40_000] + _RANDOM[:700] + _LINES[5000:],
}


def target(name: str) -> Path:
    """Return where the image called `name` is kept."""
    return DATA / f"erofs-{name}.img.xz"


def content_of(name: str) -> dict[str, bytes]:
    """Return the files of the image called `name`."""
    return SHARED if name in SHARING else CONTENT


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree, image = Path(folder) / "tree", Path(folder) / "image"
        tree.mkdir()
        for name, options in {**PACKINGS, **SHARING}.items():
            for file, content in content_of(name).items():
                (tree / file).write_bytes(content)
            fixed = ("-T0", "--all-root", "-U", "11111111-2222-3333-4444-555555555555")
            subprocess.run([*sys.argv[1:], "--quiet", *options, *fixed, image, tree], check=True)
            target(name).write_bytes(lzma.compress(image.read_bytes(), preset=9))
            image.unlink()


if __name__ == "__main__":
    main()
