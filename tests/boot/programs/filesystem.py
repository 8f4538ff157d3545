"""Runs in a guest: what POSIX says of a file system, and random work on one file.

    python3 filesystem.py DIRECTORY SEED

Prints one line for each check, which another file system must print alike, and fails where a file
does not hold what was written to it.
"""

import errno
import fcntl
import mmap
import os
import random
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time


def told(label, action, *arguments, **named):
    """Print what a call returned, or the name of its error."""
    try:
        found = action(*arguments, **named)
    except OSError as fault:
        found = errno.errorcode.get(fault.errno, fault.errno)
    print(label, found)


def mode(path):
    found = os.lstat(path)
    return oct(found.st_mode), found.st_nlink if not stat.S_ISDIR(found.st_mode) else "dir"


def make(path, data=b"data"):
    with open(path, "wb") as file:
        file.write(data)


def names():
    make("a")
    told("link", os.link, "a", "b")
    told("links", mode, "a")
    told("link over", os.link, "a", "b")
    told("link dir", os.link, ".", "x")
    told("same", lambda: os.stat("a").st_ino == os.stat("b").st_ino)
    told("rename to itself", os.rename, "a", "b")
    told("both there", lambda: sorted(os.listdir(".")))
    os.unlink("b")
    os.makedirs("d/e")
    told("rename file over dir", os.rename, "a", "d")
    told("rename dir over file", os.rename, "d", "a")
    told("rename into itself", os.rename, "d", "d/e/f")
    told("rename over non-empty", lambda: (os.mkdir("x"), os.rename("x", "d")))
    told("rename over empty", os.rename, "x", "d/e")
    told("rmdir non-empty", os.rmdir, "d")
    told("unlink dir", os.unlink, "d")
    told("rmdir file", os.rmdir, "a")
    told("mkdir there", os.mkdir, "d")
    told("open dir to write", os.open, "d", os.O_WRONLY)
    told("create there", os.open, "a", os.O_CREAT | os.O_EXCL)
    told("lookup below file", os.stat, "a/b")
    told("255", make, "n" * 255)
    told("256", make, "n" * 256)
    told("odd names", lambda: (make(b"\xff\xfe\n"), b"\xff\xfe\n" in os.listdir(b".")))
    os.symlink("d/../a", "s")
    told("readlink", os.readlink, "s")
    told("through", lambda: open("s", "rb").read())
    told("no follow", os.open, "s", os.O_RDONLY | os.O_NOFOLLOW)
    told("long link", lambda: (os.symlink("t" * 4095, "t"), len(os.readlink("t"))))
    told("longer link", os.symlink, "t" * 4096, "u")
    os.symlink("loop", "loop")
    told("loop", os.stat, "loop")
    told(
        "dangling",
        lambda: (os.symlink("none", "g"), open("g", "w").close(), os.path.exists("none")),
    )


def open_files():
    fd = os.open("gone", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"still")
    os.unlink("gone")
    told("unlinked", lambda: (os.pread(fd, 10, 0), os.fstat(fd).st_nlink))
    told("unlinked truncate", lambda: (os.ftruncate(fd, 2), os.fstat(fd).st_size))
    told("unlinked chmod", lambda: (os.fchmod(fd, 0o640), oct(os.fstat(fd).st_mode)))
    os.close(fd)
    make("over", b"old")
    fd = os.open("over", os.O_RDONLY)
    make("new", b"new")
    os.rename("new", "over")
    told("renamed over", lambda: (os.pread(fd, 10, 0), open("over", "rb").read()))
    os.close(fd)
    one = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    two = os.open("log", os.O_WRONLY | os.O_APPEND)
    for fd in (one, two, one):
        os.write(fd, b"%d" % (fd == one))
    told("appended", lambda: open("log", "rb").read())
    told("truncated on open", lambda: (open("log", "wb").close(), os.stat("log").st_size))
    told("read only fd", os.write, os.open("log", os.O_RDONLY), b"x")
    told("hole", lambda: (os.truncate("log", 1 << 20), open("log", "rb").read() == bytes(1 << 20)))


def attributes():
    make("m")
    for bits in (0o000, 0o4755, 0o2755, 0o1777, 0o7777, 0o640):
        told(f"chmod {bits:o}", lambda bits=bits: (os.chmod("m", bits), mode("m")))
    told("chown", lambda: (os.chown("m", 12, 34), os.stat("m")[4:6]))
    os.chmod("m", 0o6755)
    told("chown clears", lambda: (os.chown("m", 1, 1), mode("m")))
    os.chmod("m", 0o4777)
    child = subprocess.run(
        [sys.executable, "-c", "import os; os.setuid(65534); open('m', 'ab').write(b'x')"]
    )
    told("write clears", lambda: (child.returncode, mode("m")))
    os.mkdir("g")
    os.chown("g", 0, 77)
    os.chmod("g", 0o2775)
    make("g/f")
    os.mkdir("g/d")
    told("group inherited", lambda: (os.stat("g/f").st_gid, os.stat("g/d").st_gid, mode("g/d")))
    told(
        "utime",
        lambda: (os.utime("m", ns=(1_000_000_001, 2_000_000_002)), os.stat("m").st_mtime_ns),
    )
    told("before 1970", lambda: (os.utime("m", (-5, -7)), os.stat("m").st_mtime))
    before = os.stat("m").st_ctime_ns
    time.sleep(0.02)
    os.chmod("m", 0o600)
    told("ctime", lambda: os.stat("m").st_ctime_ns > before)
    for kind, rdev in ((stat.S_IFIFO, 0), (stat.S_IFCHR, os.makedev(1, 3)), (stat.S_IFBLK, 99)):
        name = f"k{kind:o}"
        told(name, lambda: (os.mknod(name, kind | 0o600, rdev), mode(name), os.stat(name).st_rdev))
    told("null", lambda: open(f"k{stat.S_IFCHR:o}", "wb").write(b"x"))
    listener = socket.socket(socket.AF_UNIX)
    told("socket", lambda: (listener.bind("sock"), listener.listen(), mode("sock")))
    told("connect", lambda: socket.socket(socket.AF_UNIX).connect("sock"))
    told("user.* set", lambda: (os.setxattr("m", "user.a", b"1"), os.getxattr("m", "user.a")))
    told("trusted", lambda: (os.setxattr("m", "trusted.a", b"1"), os.getxattr("m", "trusted.a")))
    told("user.* twice", os.setxattr, "m", "user.a", b"", os.XATTR_CREATE)
    told("user.* none", os.getxattr, "m", "user.b")
    told("user.* removed", lambda: (os.removexattr("m", "user.a"), "user.a" in os.listxattr("m")))


def locks():
    make("l", b"0123456789")
    held = os.open("l", os.O_RDWR)
    fcntl.lockf(held, fcntl.LOCK_EX, 5)
    code = (
        "import fcntl, os\nf = os.open('l', os.O_RDWR)\n"
        "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)\nprint('other half', flush=True)\n"
        "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 5)\n"
        "except OSError as e: print('refused', e.errno, flush=True)\n"
        "fcntl.lockf(f, fcntl.LOCK_EX, 5)\nprint('got it', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    print(child.stdout.readline(), child.stdout.readline(), end="")
    fcntl.lockf(held, fcntl.LOCK_UN)
    print(child.communicate()[0], end="")
    fcntl.flock(held, fcntl.LOCK_EX)
    told("flock", lambda: fcntl.flock(os.open("l", os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB))


def database():
    for journal in ("wal", "delete"):
        one, two = (sqlite3.connect(f"{journal}.db", timeout=30) for _ in range(2))
        told("journal", lambda: one.execute(f"pragma journal_mode={journal}").fetchone())
        one.execute("create table t (n integer)")
        one.commit()

        def write(first, journal=journal):
            link = sqlite3.connect(f"{journal}.db", timeout=30)
            for number in range(first, first + 30):
                with link:
                    link.execute("insert into t values (?)", (number,))
            link.close()

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, 1000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        told("rows", lambda: two.execute("select count(*), sum(n) from t").fetchone())
        told("integrity", lambda: two.execute("pragma integrity_check").fetchone())


def exercise(seed, steps=1500, most=300_000):
    """As fsx does: every read is compared with what ought to be there."""
    chance = random.Random(seed)
    content = bytearray()
    fd = os.open("fsx", os.O_RDWR | os.O_CREAT, 0o644)

    def pad(end):
        content.extend(bytes(max(0, end - len(content))))

    for step in range(steps):
        kind = chance.choice("rrwwwtmnpcos")
        offset = chance.randrange(most)
        size = chance.randrange(1, 70_000)
        if kind == "r":
            found = os.pread(fd, size, offset)
            assert found == content[offset : offset + size], (seed, step, "read")
        elif kind == "w":
            data = chance.randbytes(size)
            pad(offset + size)
            content[offset : offset + size] = data
            assert os.pwrite(fd, data, offset) == size
        elif kind == "t":
            os.ftruncate(fd, offset)
            del content[offset:]
            pad(offset)
        elif kind in "mn" and content:
            offset = min(offset, len(content) - 1)
            size = min(size, len(content) - offset)
            with mmap.mmap(fd, len(content)) as mapped:
                if kind == "m":
                    assert mapped[offset : offset + size] == content[offset : offset + size], (
                        seed,
                        step,
                        "mmap",
                    )
                else:
                    data = chance.randbytes(size)
                    mapped[offset : offset + size] = data
                    content[offset : offset + size] = data
                    mapped.flush()
        elif kind == "p":
            os.posix_fallocate(fd, offset, size)
            pad(offset + size)
        elif kind == "c" and content:
            source = min(offset, len(content) - 1)
            target = (source + size + chance.randrange(1000)) % most
            count = min(size, len(content) - source)
            if abs(target - source) >= count:
                done = os.copy_file_range(fd, fd, count, source, target)
                pad(target + done)
                content[target : target + done] = content[source : source + done]
        elif kind == "o":
            os.close(fd)
            fd = os.open("fsx", os.O_RDWR)
        elif kind == "s":
            os.fsync(fd)
            assert os.fstat(fd).st_size == len(content), (seed, step, "size")
    with open("fsx", "rb") as file:
        assert file.read() == content, (seed, "end")
    print("fsx", len(content))


if __name__ == "__main__":
    os.umask(0o022)
    os.chdir(sys.argv[1])
    for check in (names, open_files, attributes, locks, database):
        os.mkdir(check.__name__)
        os.chdir(check.__name__)
        print(f"-- {check.__name__}")
        check()
        os.chdir("..")
    exercise(int(sys.argv[2]))
