"""A made-up Debian archive on disk, for the real apt-get: small, offline, and ours to break."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

from tests.board.kernels import bzimage, elf, lz4_legacy

BUSYBOX = b"\x7fELF busybox\0[\0[[\0ash\0cat\0sh\0\0rest"


def tar(files):
    """Return a tar archive; a value is content, a str a link's target, None a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo("./" + name)
            info.mode = 0o755
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def deb(control, files, compress=gzip.compress, suffix=".gz"):
    """Return a .deb file."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": gzip.compress(tar({"control": control.encode()})),
        "data.tar" + suffix: compress(tar(files)),
    }
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
        out += content + b"\n" * (len(content) & 1)
    return out


def control(name, version="1.0-1", depends="", architecture="amd64"):
    """Return the text of a control file."""
    text = f"Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n"
    text += "Maintainer: Nobody <nobody@example.org>\n"
    return text + (f"Depends: {depends}\n" if depends else "") + f"Description: {name}\n"


def module(name, depends=""):
    """Return an ELF file with a .modinfo section, as a kernel module has it."""
    info = f"name={name}\0depends={depends}\0license=GPL\0".encode()
    names = b"\0.modinfo\0.shstrtab\0"
    start = 64
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, start, len(info), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, start + len(info), len(names), 0, 0, 1, 0)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    table = start + len(info) + len(names)
    head = struct.pack("<16sHHIQQQIHHHHHH", ident, 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    return head + info + names + sections


class Archive:
    """`add` packages, then `publish`; `uri` goes into RINGZERO_MIRROR."""

    def __init__(self, root: Path, suite="test"):
        self.root = root
        self.suite = suite
        self.uri = f"file:{root}"
        self._records = []
        (root / "pool").mkdir(parents=True)

    def add(self, text, files, **options):
        fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
        content = deb(text, files, **options)
        path = f"pool/{fields['Package']}_{fields['Version']}_{fields['Architecture']}.deb"
        (self.root / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self._records.append(
            f"{text.strip()}\nFilename: {path}\nSize: {len(content)}\nSHA256: {digest}\n"
        )
        return self.root / path

    def publish(self):
        base = self.root / "dists" / self.suite
        lists = base / "main" / "binary-amd64"
        lists.mkdir(parents=True, exist_ok=True)
        text = "\n".join(self._records).encode()
        (lists / "Packages").write_bytes(text)
        (base / "Release").write_text(
            f"Origin: Debian\nSuite: {self.suite}\nCodename: {self.suite}\nComponents: main\n"
            f"Architectures: amd64\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(text).hexdigest()} {len(text)} main/binary-amd64/Packages\n"
        )
        return self

    def with_guest(self):
        """Add what the image `micro` is made of, in small."""
        release = "lib/modules/6.6.6-test/kernel"
        self.add(control("linux-image-cloud-amd64", depends="linux-image-6.6.6-test (= 1.0-1)"), {})
        self.add(
            control("linux-image-6.6.6-test", depends="kmod, initramfs-tools"),
            {
                "boot": None,
                "boot/vmlinuz-6.6.6-test": bzimage(lz4_legacy(elf())),
                f"{release}/virtio.ko": module("virtio", "virtio_ring"),
                f"{release}/virtio_ring.ko": module("virtio_ring"),
                f"{release}/virtio_blk.ko": module("virtio_blk", "virtio,virtio_ring"),
                f"{release}/sound.ko": module("sound"),
            },
        )
        self.add(control("busybox-static", "1:1.35-4"), {"bin": None, "bin/busybox": BUSYBOX})
        return self
