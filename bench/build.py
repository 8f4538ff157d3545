"""Building images: what a change of one step costs, beside the whole build.

    python bench/build.py                   about a minute
    python bench/build.py --json out.json --rounds 5

Ten steps, seven of them commands in a machine. "cold" has a cache without steps, "last RUN" and
"last COPY" have all but the last step of its kind, "known" has all; "no fork" is "last RUN" without
the machines that were kept: the base boots, and gets the layers. Each is timed from the start of
`ringzero image build` to its end. "size of ten" is what ten images that share their base take in
the store, as a multiple of one. "first answer" is from the start of `ringzero run` of an image with
a service and a SNAPSHOT to the end of its first answer by HTTP, "booted" the same with --boot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

from ringzero.settings import CACHE_DIR

STEPS = """\
FROM micro
RUN mkdir -p /srv/app && head -c 1000000 /dev/urandom >/srv/app/data
RUN seq 1 20000 | sort -r >/srv/app/sorted
COPY source /srv/app/source
RUN md5sum /srv/app/* >/srv/app/sums
RUN tar -c -f /srv/app.tar -C /srv app
RUN gzip -k /srv/app.tar
RUN id -u nobody >/srv/nobody
RUN echo {word} >/srv/word
COPY last /srv/last
"""
PROGRAM = Path(sys.executable).with_name("ringzero")
SERVICE = """\
FROM micro
MEMORY 128M
RUN mkdir /www && echo hello >/www/word
SERVICE web httpd -f -p 8000 -h /www
READY http://127.0.0.1:8000/word
SNAPSHOT
"""
# Of builds after the cold one: the words in the last RUN and in the last COPY.
CHANGES = {
    "last RUN": ("r{}", "0"),
    "last COPY": ("w", "c{}"),
    "known": ("w", "0"),
    "no fork": ("n{}", "0"),
}
# How long nothing answers before that is a fault, in seconds, and how often it is tried.
PATIENCE, AGAIN = 120, 0.002
# What is the user's own and the same for all: the guest's image, the engine.
SHARED = ("blobs", "layers", "build", "names", "lock", "templates")


def cache_of_its_own(place: Path) -> Path:
    """Return a cache that has the user's guest and engine, and no steps and images."""
    user, own = CACHE_DIR.get(), place / "cache"
    (own / "images").mkdir(parents=True)
    for path in [*user.iterdir(), *(user / "images").iterdir()]:
        target = own / path.relative_to(user)
        if not target.exists() and path.name not in SHARED:
            target.symlink_to(path)
    return own


def build(place: Path, cache: Path, name: str, word: str, last: str) -> float:
    """Build an image with two words in it; return the seconds that took."""
    (place / "Vmfile").write_text(STEPS.format(word=word))
    (place / "source").write_text("source\n")
    (place / "last").write_text(last)
    return built(place, cache, name)


def built(place: Path, cache: Path, name: str) -> float:
    """Build the Vmfile of a directory; return the seconds that took."""
    begin = time.perf_counter()
    subprocess.run(
        [PROGRAM, "image", "build", "--progress", "quiet", "-t", name, place],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"RINGZERO_CACHE_DIR": str(cache)},
    )
    return time.perf_counter() - begin


def first_answer(cache: Path, name: str, *flags: str) -> float:
    """Return how long a service's first answer takes from the start of its machine, in seconds."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    begin = time.perf_counter()
    machine = subprocess.Popen(
        [PROGRAM, "run", *flags, "-p", f"{port}:8000", name],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"RINGZERO_CACHE_DIR": str(cache)},
    )
    try:
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}/word", timeout=PATIENCE) as answer:
                    answer.read()
                return time.perf_counter() - begin
            except OSError:
                if time.perf_counter() - begin > PATIENCE:
                    raise
                time.sleep(AGAIN)
    finally:
        machine.terminate()
        machine.wait()


def disk_use(cache: Path) -> int:
    """Return how many bytes of the disk the store of images takes; what has two names, once."""
    found = {}
    for part in ("images", "blobs", "layers"):
        for path in (cache / part).rglob("*"):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[status.st_ino] = status.st_blocks * 512
    return sum(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name) / "context"
        place.mkdir()
        cold = []
        for _ in range(options.rounds):
            shutil.rmtree(Path(name) / "cache", ignore_errors=True)
            cache = cache_of_its_own(Path(name))
            cold.append(build(place, cache, "bench:0", "w", "0"))
        rows["cold"] = statistics.median(cold)
        one = disk_use(cache)
        for row, (word, last) in CHANGES.items():
            times = []
            for n in range(options.rounds):
                if row == "no fork":
                    shutil.rmtree(cache / "build" / "machines", ignore_errors=True)
                times.append(build(place, cache, "bench:0", word.format(n), last.format(n)))
            rows[row] = statistics.median(times)
        for number in range(10):
            build(place, cache, f"ten:{number}", "w", f"ten{number}")
        prune = [PROGRAM, "image", "prune"]
        environment = os.environ | {"RINGZERO_CACHE_DIR": str(cache)}
        subprocess.run(prune, check=True, stdout=subprocess.DEVNULL, env=environment)
        rows["size of ten"] = disk_use(cache) / one
        (place / "Vmfile").write_text(SERVICE)
        built(place, cache, "service:0")
        for row, flags in (("first answer", ()), ("booted", ("--boot",))):
            times = [first_answer(cache, "service:0", *flags) for _ in range(options.rounds)]
            rows[row] = statistics.median(times)
    for row, value in rows.items():
        unit = "" if row.startswith("size") else " s"
        ratio = f"   cold / {rows['cold'] / value:.1f}" if row in CHANGES else ""
        print(f"{row:<14}{value:8.2f}{unit}{ratio}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
