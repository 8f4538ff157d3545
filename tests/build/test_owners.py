"""Whose files are: packages' of dpkg, apk and languages' installers, directories', everybody's."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.build.entries import Entry
from ringzero.build.owners import SHARED, Owners


def file(name, data=b""):
    return Entry(name, stat.S_IFREG | 0o644, size=len(data), content=lambda: iter((data,)))


DPKG = file(
    b"var/lib/dpkg/info/libc6:amd64.list",
    b"/.\n/lib\n/lib/x86_64-linux-gnu/libc.so.6\n/usr/share/doc/libc6/copyright\n",
)
APK = file(
    b"lib/apk/db/installed",
    b"C:Q1\nP:musl\nV:1\nF:lib\nR:ld-musl.so.1\nZ:Q1\n\nP:busybox\nF:\nR:top\nF:bin\nR:busybox\n",
)


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        (b"lib/x86_64-linux-gnu/libc.so.6", b"deb:libc6:amd64"),
        (b"usr/lib/x86_64-linux-gnu/libc.so.6", b"deb:libc6:amd64"),
        (b"usr/share/doc/libc6/copyright", b"deb:libc6:amd64"),
        (b"var/lib/dpkg/info/libc6:amd64.postinst", b"deb:libc6:amd64"),
        (b"var/lib/dpkg/info/libc6:amd64.list", b"deb:libc6:amd64"),
        (b"lib/ld-musl.so.1", b"apk:musl"),
        (b"bin/busybox", b"apk:busybox"),
        (b"top", b"apk:busybox"),
        # Of a package whose list is in a layer below.
        (b"var/lib/dpkg/info/other.postinst", SHARED),
        (b"var/lib/dpkg/status", SHARED),
        (b"var/cache/debconf/config.dat", SHARED),
        (b"etc/ld.so.cache", SHARED),
        (b"etc/passwd", b"/etc"),
        (b"file", b"/"),
        (b"a/b/c/d/e/f", b"/a/b/c/d"),
        (b"v/lib/python3.11/site-packages/yaml/a/b.py", b"/v/lib/python3.11/site-packages/yaml"),
        (b"v/site-packages/six.py", b"/v/site-packages/six"),
        (b"v/site-packages/Six-1.16.0.dist-info/RECORD", b"/v/site-packages/six"),
        (b"app/node_modules/left/index.js", b"/app/node_modules/left"),
        (b"app/node_modules/@scope/it/index.js", b"/app/node_modules/@scope/it"),
    ],
)
def test_owners(name, owner):
    assert Owners([DPKG, APK, file(name)]).of(name) == owner


def test_the_order_of_files_does_not_matter():
    # Two packages that claim a file: the same one has it each time.
    lists = [file(b"var/lib/dpkg/info/%c.list" % letter, b"/usr/bin/x\n") for letter in b"ba"]
    assert {Owners(files).of(b"usr/bin/x") for files in (lists, lists[::-1])} == {b"deb:a"}


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=60))
def test_databases_of_any_bytes_name_owners_and_no_more(data, name):
    found = Owners([file(b"var/lib/dpkg/info/x.list", data), file(b"lib/apk/db/installed", data)])
    assert isinstance(found.of(name), bytes)


def test_a_database_that_is_too_large_is_not_read():
    huge = Entry(b"var/lib/dpkg/info/x.list", stat.S_IFREG, size=1 << 40, content=pytest.fail)
    assert Owners([huge]).of(b"usr/bin/x") == b"/usr/bin"
