"""Images of containers: pulling one beside skopeo, and starting one beside the default guest.

    python bench/oci.py [--rounds N] [--size MIB] [--json FILE] [--only pull|start|update]

Pull: images of `--size` MiB (gzip, in `--layers` layers) in Debian's docker-registry on loopback,
one whose files do not pack and one whose files do by a quarter; `ringzero pull` into an empty
store, which unpacks it and writes its root file system, in turns with `skopeo copy` of it into an
OCI layout, which keeps the layers as they come, packed, and with `buildah pull` (where it is
installed) into an empty store of folders, which unpacks them, too. Start: an image in the store
until its first output, in turns with the default guest. The best of the rounds each, and the ratio;
below 1 is faster than the peer. Update: an image that `ringzero image build` makes of a root with
150 packages, pushed and pulled, and then again with one of them changed: the bytes of blobs that go
over, as multiples of that package's as zstd packs it alone, and beside them those of the image as
one layer. CPU seconds are those of the process and its children, not the
registry's.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
SCRIPT = Path(sys.executable).with_name("ringzero")
COMMAND = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "ringzero"]
# The bytes of a file of an image here, and by the image's name which part of them does not pack.
_FILE = 200_000
_KINDS = {"random": 1.0, "mixed": 0.4}


def layer(size: int, seed: int, noise_part: float) -> bytes:
    """Return a tar packed by gzip, of `size` bytes about; that part of its files does not pack."""
    random_ = random.Random(seed)
    words = [random_.randbytes(random_.randrange(3, 12)) for _ in range(4000)]
    file, number = io.BytesIO(), 0
    with (
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        while file.tell() < size:
            noise = random_.randbytes(int(_FILE * noise_part))
            text = b"".join(random_.choices(words, k=(_FILE - len(noise)) // 7))
            data = noise + text
            info = tarfile.TarInfo(f"usr/lib/{seed}/{number % 50}/file-{number}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
            number += 1
    return file.getvalue()


def write_layout(place: Path, layers: list[bytes], config: dict[str, object]) -> None:
    """Write an OCI layout of packed layers with one image, called "1"."""
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        kind = f"application/vnd.oci.image.{kind}"
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    plain = [hashlib.sha256(gzip.decompress(data)).hexdigest() for data in layers]
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in plain]}
    value = {"architecture": "amd64", "os": "linux", "config": config, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(value).encode(), "config.v1+json"),
        "layers": [put(data, "layer.v1.tar+gzip") for data in layers],
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry |= {"annotations": {"org.opencontainers.image.ref.name": "1"}}
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


@contextlib.contextmanager
def registry(place: Path) -> Iterator[str]:
    """Run docker-registry on loopback; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"127.0.0.1:{free.getsockname()[1]}"
    config = place / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\n"
        f"storage:\n  filesystem:\n    rootdirectory: {place}/registry\nhttp:\n  addr: {host}\n"
    )
    child = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(host.rpartition(":")[2]))) == 0:
                    break
            time.sleep(0.05)
        yield host
    finally:
        child.terminate()
        child.wait(10)


def push(layout: str, name: str) -> None:
    """Put the image of a layout into a registry on loopback."""
    timed(["skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{name}"])


class Took(NamedTuple):
    """Seconds by the clock and of CPU."""

    wall: float
    cpu: float


def timed(command: list[str], **environment: str) -> Took:
    """Return what a command takes."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=ENVIRONMENT | environment, capture_output=True, check=False)
    took = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-500:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Took(took, cpu)


def in_turns(one: Callable[[], Took], other: Callable[[], Took], rounds: int) -> tuple[Took, Took]:
    """Return the best of each, by the clock and of CPU."""
    one()
    other()
    pairs = [(one(), other()) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    return _best(ours), _best(theirs)


def _best(runs: Sequence[Took]) -> Took:
    return Took(min(run.wall for run in runs), min(run.cpu for run in runs))


def pulls(
    place: Path, kind: str, size: int, layers: int, rounds: int
) -> dict[str, tuple[Took, Took]]:
    """Return the best of ringzero's pull and a peer's, by the peer's name."""
    made = [layer((size << 20) // layers, seed, _KINDS[kind]) for seed in range(layers)]
    write_layout(place / kind, made, {"Cmd": ["true"]})
    with registry(place) as host:
        name = f"{host}/bench:1"
        push(f"{place}/{kind}", name)

        def ours() -> Took:
            took = timed([*COMMAND, "pull", "--quiet", name], RINGZERO_CACHE_DIR=f"{place}/cache")
            shutil.rmtree(place / "cache")
            return took

        def skopeo() -> Took:
            target = f"oci:{place}/copy:1"
            took = timed(["skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", target])
            shutil.rmtree(place / "copy")
            return took

        def buildah() -> Took:
            store = ["--root", f"{place}/store", "--runroot", f"{place}/run"]
            words = ["--storage-driver", "vfs", "pull", "--quiet", "--tls-verify=false"]
            took = timed(["buildah", *store, *words, f"docker://{name}"])
            shutil.rmtree(place / "store")
            return took

        found = {"skopeo copy": in_turns(ours, skopeo, rounds)}
        if shutil.which("buildah"):
            found["buildah pull"] = in_turns(ours, buildah, rounds)
        return found


def starts(place: Path, rounds: int) -> tuple[Took, Took]:
    """Return the best seconds until (an image in the store, the default guest) has said a word."""
    busybox = shutil.which("busybox")
    if busybox is None:
        sys.exit("needs a static busybox")
    file = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        info = tarfile.TarInfo("bin/echo")
        data = Path(busybox).read_bytes()
        info.size, info.mode = len(data), 0o755
        archive.addfile(info, io.BytesIO(data))
    write_layout(place / "busybox", [file.getvalue()], {"Cmd": ["/bin/echo", "hello"]})
    with registry(place) as host:
        name = f"{host}/busybox:1"
        push(f"{place}/busybox", name)
        timed([*COMMAND, "pull", "--quiet", name])
    try:
        return in_turns(
            lambda: first_output([*COMMAND, "run", name]),
            lambda: first_output([*COMMAND, "run", "--", "echo", "hello"]),
            rounds,
        )
    finally:
        timed([*COMMAND, "image", "rm", name])


def first_output(command: list[str]) -> Took:
    """Return what a command takes, by the clock until its first byte of output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        if not child.stdout.read(1):
            sys.exit(f"{' '.join(command)} says nothing")
        took = time.monotonic() - began
        child.stdout.read()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Took(took, cpu)


def write_package(root: Path, name: str, version: int, size: int) -> list[Path]:
    """Write a package's files, of which half pack, and dpkg's note of them; return them."""
    random_ = random.Random(f"{name} {version}")
    words = [b"%x" % random_.getrandbits(32) for _ in range(400)]
    text = b" ".join(random_.choices(words, k=size // 18))
    content = {f"usr/bin/{name}": random_.randbytes(size // 2), f"usr/share/{name}/text": text}
    listed = "".join(f"/{path}\n" for path in content)
    content[f"var/lib/dpkg/info/{name}.list"] = listed.encode()
    for path, data in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return [root / path for path in content]


def packed_size(files: Sequence[Path]) -> int:
    """Return how many bytes files take as a tar that zstd packs as `ringzero image build` does."""
    import zstandard

    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path in files:
            archive.add(path)
    return len(zstandard.ZstdCompressor(level=3).compress(plain.getvalue()))


def update(place: Path) -> dict[str, float]:
    """Return what an image's update costs by one package, as multiples of that package's size."""
    random_, context = random.Random(4), place / "context"
    sizes = {f"p{n}": int(min(3e6, 25_000 * random_.paretovariate(0.9))) for n in range(150)}
    sizes["it"] = 450_000
    for name, size in sizes.items():
        write_package(context / "root", name, 1, size)
    (context / "Vmfile").write_text("FROM scratch\nCOPY root /\n")
    stores = [{"RINGZERO_CACHE_DIR": f"{place}/{store}"} for store in ("here", "there")]
    with registry(place) as host:

        def ship(tag: int) -> tuple[int, int]:
            """Build, push and pull; return the bytes that went, and that came."""
            name = f"{host}/update:{tag}"
            words = ["image", "build", "--progress", "quiet", "-t", name, str(context)]
            timed([*COMMAND, *words], **stores[0])
            pushed = subprocess.run(
                [*COMMAND, "push", "--json", "--quiet", name],
                env=ENVIRONMENT | stores[0],
                capture_output=True,
                check=True,
            )
            before = _blobs(place / "there")
            timed([*COMMAND, "pull", "--quiet", name], **stores[1])
            return int(json.loads(pushed.stdout)["sent"]), _blobs(place / "there") - before

        ship(1)
        files = write_package(context / "root", "it", 2, sizes["it"])
        sent, came = ship(2)
    package = packed_size(files)
    whole = packed_size([path for path in (context / "root").rglob("*") if path.is_file()])
    return {"push": sent / package, "pull": came / package, "one layer": whole / package}


def _blobs(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "blobs").rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=200, help="MiB of the image that is pulled")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--only", choices=("pull", "start", "update"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table: dict[str, dict[str, str | float]] = {}
    with tempfile.TemporaryDirectory() as work:
        place = Path(work)
        missing = [p for p in ("docker-registry", "skopeo") if shutil.which(p) is None]
        if missing:
            print(f"not measured: there is no {' and no '.join(missing)}")
            return 0
        if arguments.only in (None, "pull"):
            for kind in _KINDS:
                size, layers = arguments.size, arguments.layers
                for peer, found in pulls(place, kind, size, layers, arguments.rounds).items():
                    table[f"pull {kind}, {peer.split()[0]}"] = row(*found, peer)
        if arguments.only in (None, "start"):
            table["start"] = row(*starts(place, arguments.rounds), "default guest")
        updated = update(place) if arguments.only in (None, "update") else {}
    if arguments.json:
        whole = table | ({"update": updated} if updated else {})
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")
    for name, line in table.items():
        print(
            f"oci {name:22} {line['wall']:6.2f} s ({line['cpu']:.2f} of CPU)   "
            f"{line['peer']} {line['peer_wall']:6.2f} s ({line['peer_cpu']:.2f})   "
            f"{line['ratio']:.2f}"
        )
    if updated:
        told = ", ".join(f"{name} {value:.2f}" for name, value in updated.items())
        print(f"oci update of one package, by its size: {told}")
    return 0


def row(ours: Took, theirs: Took, peer: str) -> dict[str, str | float]:
    """Return a row of the table."""
    return {
        "wall": ours.wall,
        "cpu": ours.cpu,
        "peer": peer,
        "peer_wall": theirs.wall,
        "peer_cpu": theirs.cpu,
        "ratio": ours.wall / theirs.wall,
    }


if __name__ == "__main__":
    sys.exit(main())
