"""Mixed work with checksums, inside a guest: `python3 - SECONDS < soak_guest.py`.

Runs jobs of many kinds, three at a time, until the time is over. Every job
knows its right answer. Prints a line for each kind with the number of its
runs; exits with 1 and says so when an answer was wrong.
"""

import hashlib
import itertools
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

AT_ONCE = 3
BLOCKS = 64  # of 64 KiB, in each job's part of the disk
SHARE = BLOCKS << 16


def sh(script, data=b""):
    done = subprocess.run(["sh", "-c", script], input=data, capture_output=True)
    assert done.returncode == 0, (script, done.stderr[-500:])
    return done.stdout


def text(seed):
    """Lines sorted, filtered and counted by three programs, and by us."""
    lines = [b"%d %d\n" % (n * 7919 % 10007, seed) for n in range(20_000)]
    out = sh("sort -n | gawk '$1 % 3 == 0 { s += $1; n++ } END { print n, s }'", b"".join(lines))
    chosen = [int(line.split()[0]) for line in lines if int(line.split()[0]) % 3 == 0]
    assert out == b"%d %d\n" % (len(chosen), sum(chosen)), out


def compilers(seed):
    """What a compiler does: read, parse, transform, write."""
    source = "".join(f"def f{n}(a, b):\n    return a * {n} + b ** {seed % 7}\n" for n in range(400))
    code = compile(source, "soak", "exec")
    names = {}
    exec(code, names)
    assert sum(names[f"f{n}"](2, 3) for n in range(400)) == sum(
        2 * n + 3 ** (seed % 7) for n in range(400)
    )


def perl(seed):
    out = sh(f"perl -e 'my %h; $h{{($_ * {seed + 1}) % 997}}++ for 1..50000; print scalar keys %h'")
    expected = len({n * (seed + 1) % 997 for n in range(1, 50_001)})
    assert out == b"%d" % expected, out


def compressors(seed):
    data = random.Random(seed).randbytes(50_000) + b"abc" * 100_000
    for tool in ("gzip", "xz -1", "bzip2"):
        assert sh(f"{tool} -c | {tool.split()[0]} -dc", data) == data, tool
    assert zlib.decompress(zlib.compress(data)) == data


def forks(seed):
    out = sh("n=0; for i in $(seq 60); do (exit $((i % 7))) || n=$((n + $?)); done; echo $n")
    assert out == b"%d\n" % sum(n % 7 for n in range(1, 61)), out


def pipes(seed):
    data = random.Random(seed).randbytes(1 << 20)
    assert sh("cat | cat | cat | tee /dev/null | cat", data) == data


def signals(seed):
    """A child answers each signal before the next is sent."""
    script = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])\n"
        "os.write(1, b'.')\n"
        "for n in range(200):\n"
        "    signal.sigwait([signal.SIGUSR1]); os.write(1, b'%c' % (n % 256))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert os.read(child.stdout.fileno(), 1) == b"."
    for n in range(200):
        child.send_signal(signal.SIGUSR1)
        assert os.read(child.stdout.fileno(), 1) == b"%c" % (n % 256)
    assert child.wait() == 0
    child.stdout.close()


def timers(seed):
    """Sleeps are as long as asked for, and all clocks agree about it."""
    for _ in range(5):
        before, wall = time.monotonic(), time.time()
        time.sleep(0.05)
        passed, by_wall = time.monotonic() - before, time.time() - wall
        assert 0.05 <= passed < 30, passed
        assert abs(passed - by_wall) < 0.05, (passed, by_wall)
    assert subprocess.run(["timeout", "0.3", "sleep", "60"]).returncode == 124


def memory(seed):
    """More than the caches hold, touched, mapped anew, and shared with a child."""
    area = mmap.mmap(-1, 32 << 20)
    for place in range(0, len(area), 4096):
        area[place : place + 4] = (place ^ seed).to_bytes(4, "little")
    child = os.fork()
    if child == 0:
        good = all(
            area[place : place + 4] == (place ^ seed).to_bytes(4, "little")
            for place in range(0, len(area), 4096)
        )
        area[0:4] = b"gone"
        os._exit(0 if good and area[0:4] == b"gone" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert area[0:4] == b"gone"
    area.close()


def files(seed):
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for number in range(200):
            (place / str(number)).write_bytes(b"%d" % (number * seed) * 50)
        total = sum(path.stat().st_size for path in place.iterdir())
        assert total == sum(len(b"%d" % (n * seed)) * 50 for n in range(200))


_parts = itertools.count()


def disk(seed):
    """Blocks written out of order to a share of the disk, then read past the page cache."""
    start = next(_parts) % AT_ONCE * SHARE
    order = random.Random(seed)
    blocks = list(range(BLOCKS))
    order.shuffle(blocks)
    content = {number: order.randbytes(1 << 16) for number in blocks}
    with _disk_lock:
        handle = os.open("/dev/vda", os.O_RDWR)
        for number in blocks:
            os.pwrite(handle, content[number], start + (number << 16))
        os.fsync(handle)
        os.posix_fadvise(handle, start, SHARE, os.POSIX_FADV_DONTNEED)
        read = hashlib.sha256(os.pread(handle, SHARE, start)).digest()
        os.close(handle)
    assert read == hashlib.sha256(b"".join(content[n] for n in range(BLOCKS))).digest()


_disk_lock = threading.Lock()
JOBS = (text, compilers, perl, compressors, forks, pipes, signals, timers, memory, files, disk)


def main(seconds):
    end = time.monotonic() + seconds
    counts = dict.fromkeys((job.__name__ for job in JOBS), 0)
    faults = []
    seeds = itertools.count(1)

    def work():
        while time.monotonic() < end and not faults:
            seed = next(seeds)
            job = JOBS[seed % len(JOBS)]
            try:
                job(seed)
            except Exception as fault:
                faults.append(f"{job.__name__}({seed}): {fault!r}")
            counts[job.__name__] += 1

    workers = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name, count in counts.items():
        print(name, count)
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
