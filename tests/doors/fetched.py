"""Clients that Debian has not: pinned, fetched by their registries' own tools, kept in the cache.

Each function returns where a client is, or skips with the reason that it cannot be had. What is
half fetched is thrown away: a folder in the cache is whole.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

# The collection goes with the wheel of all of them; 12 asks for this line of the core.
ANSIBLE = "12.3.0"
ANSIBLE_CORE = "2.19.5"
_COLLECTION = "ansible_collections/community/libvirt/"
OPENTOFU = "github.com/opentofu/opentofu@v1.12.6"
PROVIDER = "github.com/dmacvicar/terraform-provider-libvirt@v0.8.3"
# OpenTofu from source takes four minutes on two cores.
_LONGEST = 1800


def ansible():
    """Return a folder with `bin/ansible-playbook` and `collections`."""

    def make(where):
        _run([sys.executable, "-m", "venv", where])
        _run([where / "bin" / "pip", "install", "-q", f"ansible-core=={ANSIBLE_CORE}"])
        wheel = ("download", "-q", "--no-deps", f"ansible=={ANSIBLE}", "-d", where / "wheel")
        _run([where / "bin" / "pip", *wheel])
        (packed,) = (where / "wheel").iterdir()
        with zipfile.ZipFile(packed) as archive:
            names = [name for name in archive.namelist() if name.startswith(_COLLECTION)]
            archive.extractall(where / "collections", names)
        shutil.rmtree(where / "wheel")

    return _kept(f"ansible-{ANSIBLE}", make)


def tofu():
    """Return OpenTofu's program."""
    return _from_module(OPENTOFU, "./cmd/tofu", "tofu")


def provider(line):
    """Return the program of OpenTofu's provider for libvirt of the line 0.8 or 0.9.

    That of 0.9 is not to be had as a module whole: RINGZERO_PROVIDER_LIBVIRT names one.
    """
    if line == "0.8":
        return _from_module(PROVIDER, ".", "terraform-provider-libvirt")
    given = os.environ.get("RINGZERO_PROVIDER_LIBVIRT")
    if not given:
        pytest.skip("RINGZERO_PROVIDER_LIBVIRT names no terraform-provider-libvirt 0.9")
    return Path(given)


def go_program(source):
    """Return the program that a folder of Go, with its `go.mod` and `go.sum`, is the source of."""
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())

    def make(where):
        _build(source, ".", where / source.name)

    return _kept(f"{source.name}-{digest.hexdigest()[:16]}", make) / source.name


def _from_module(module, package, name):
    """Build a program of a Go module as if it were the main one: its `replace` lines count."""

    def make(where):
        told = _run([_go(), "mod", "download", "-json", module], cwd=where)
        source = where / "source"
        shutil.copytree(json.loads(told)["Dir"], source, copy_function=shutil.copyfile)
        for folder in (source, *source.rglob("*/")):
            folder.chmod(0o755)
        _build(source, package, where / name)
        shutil.rmtree(source)

    return _kept(f"{name}-{module.rpartition('@')[2]}", make) / name


def _build(source, package, program):
    _run([_go(), "build", "-trimpath", "-o", program, package], cwd=source, CGO_ENABLED="0")


def _go():
    found = shutil.which("go")
    if found is None:
        pytest.skip("go is not installed")
    return found


def _kept(name, make):
    cache = os.environ.get("XDG_CACHE_HOME", "")
    root = (Path(cache) if cache.startswith("/") else Path.home() / ".cache") / "ringzero-tests"
    where = root / name
    if where.exists():
        return where
    root.mkdir(parents=True, exist_ok=True)
    # A virtual environment stays where it was made: it is given its name by a link.
    beside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=root))
    try:
        make(beside)
        link = beside.with_name(f"{beside.name}.link")
        link.symlink_to(beside.name)
        link.replace(where)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return where


def _run(words, cwd=None, **env):
    done = subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=_LONGEST,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"{Path(words[0]).name} {words[1]}: {''.join(last)}")
    return done.stdout
