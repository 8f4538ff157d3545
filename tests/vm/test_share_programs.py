"""Programs of the host at work in a guest, on a folder of the host: git, npm, pytest, a build.

The guest's root is the host's, so that they are there where the host has them.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest

from ringzero import Machine
from ringzero.config.devices.share import ShareConfig
from ringzero.image import micro
from tests.vm.guests import FUZZING
from tests.vm.kernel_packages import unpack_headers

pytestmark = [pytest.mark.boot, pytest.mark.engine]
PLACE = "/srv/shared"
LONG = pytest.mark.skipif(not FUZZING, reason="takes minutes; RINGZERO_FUZZ=2 has it")
FILES = 20_000


def needs(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"the host has no {', '.join(missing)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def vm(folder):
    micro.ensure()
    with Machine(root="/", memory="1G", engine="soft", share=f"{folder}:{PLACE}") as machine:
        machine.run("true", timeout=120)
        yield machine


def told(vm, command, timeout=300):
    environment = f"export PATH={os.environ['PATH']} HOME=/tmp; cd {PLACE}; "
    done = vm.run(environment + command, timeout=timeout, text=True)
    assert done.exit_code == 0, done.stdout + done.stderr
    return done.stdout.strip()


def git(where, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    command = ["git", "-C", str(where), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs("git")
def test_git_clones_commits_and_sees_what_the_host_changes(vm, folder):
    origin = folder / "origin"
    for number in range(200):
        path = origin / f"directory-{number % 20}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * number)
    git(folder, "init", "-q", "origin")
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "all")
    told(vm, "git config --global --add safe.directory '*'; git clone -q origin clone")
    assert git(folder / "clone", "status", "--porcelain") == ""
    assert told(vm, "git -C clone status --porcelain") == ""
    # What the guest was told of names and attributes it believes for a second.
    time.sleep(1.1)
    (folder / "clone" / "directory-1" / "file-1").write_text("changed\n")
    assert told(vm, "git -C clone status --porcelain") == "M directory-1/file-1"
    told(vm, "git -C clone -c user.name=a -c user.email=a@example.com commit -q -a -m guest")
    told(vm, "git -C clone gc -q && git -C clone fsck")
    assert git(folder / "clone", "log", "--format=%s") == "guest\nall"
    assert git(folder / "clone", "fsck") == ""


@LONG
@needs("git")
def test_git_status_of_twenty_thousand_files(vm, folder):
    tree = folder / "large"
    for number in range(FILES):
        path = tree / f"directory-{number % 200}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n")
    git(folder, "init", "-q", "large")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "all")
    told(vm, "git config --global --add safe.directory '*'")
    assert told(vm, "git -C large status --porcelain") == ""
    time.sleep(1.1)
    (tree / "directory-7" / "file-7").unlink()
    (tree / "new").touch()
    assert told(vm, "git -C large status --porcelain") == "D directory-7/file-7\n?? new"


@LONG
@needs("npm", "node")
def test_npm_installs_a_package_of_the_folder(vm, folder):
    library, application = folder / "library", folder / "application"
    library.mkdir()
    application.mkdir()
    about = {"name": "library", "version": "1.0.0", "main": "index.js", "bin": {"say": "say.js"}}
    (library / "package.json").write_text(json.dumps(about))
    (library / "index.js").write_text("module.exports = () => 'from the library'\n")
    (library / "say.js").write_text("#!/usr/bin/env node\nconsole.log(require('library')())\n")
    about = {"name": "application", "version": "1.0.0"}
    (application / "package.json").write_text(json.dumps(about))
    install = "npm install --offline --no-audit --no-fund --install-links --cache=/tmp/npm"
    told(vm, f"cd application && {install} ../library")
    assert told(vm, "cd application && node_modules/.bin/say") == "from the library"
    assert (application / "node_modules" / "library" / "index.js").exists()
    found = json.loads((application / "package-lock.json").read_text())
    assert "node_modules/library" in found["packages"]


@LONG
def test_pytest_runs_a_suite_of_the_folder(vm, folder):
    suite = folder / "suite"
    suite.mkdir()
    (suite / "test_some.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(20))\n"
        "def test_a_file(tmp_path, number):\n"
        "    (tmp_path / 'a').write_text(str(number))\n"
        "    assert int((tmp_path / 'a').read_text()) == number\n"
    )
    run = f"{sys.executable} -m pytest -q -p no:randomly suite --basetemp={PLACE}/suite/temporary"
    assert "20 passed" in told(vm, run)
    assert (suite / "__pycache__").is_dir()


@needs("sqlite3")
def test_sqlite_in_wal_mode_with_several_writers(vm, folder):
    told(vm, "sqlite3 db 'PRAGMA journal_mode=WAL; CREATE TABLE t (who INT, n INT)'")
    (folder / "insert").write_text(
        "for n in 1 2 3 4 5 6 7 8 9 10; do\n"
        "    printf '.timeout 60000\\nINSERT INTO t VALUES (%s, %s);\\n' $1 $n | sqlite3 db\n"
        "done\n"
    )
    told(vm, "for who in 1 2 3; do sh insert $who & done; wait")
    counted = (
        "SELECT who, count(*) FROM t GROUP BY who; PRAGMA integrity_check; PRAGMA journal_mode"
    )
    assert told(vm, f"sqlite3 db '{counted}'") == "1|10\n2|10\n3|10\nok\nwal"
    # The host reads it, and what it writes the guest has.
    with sqlite3.connect(folder / "db") as base:
        assert base.execute("SELECT count(*) FROM t").fetchone() == (30,)
        base.execute("INSERT INTO t VALUES (4, 1)")
    base.close()
    assert told(vm, "sqlite3 db 'SELECT count(*) FROM t'") == "31"


@LONG
@needs("gcc", "make")
def test_a_kernel_module_is_built_and_loaded(vm, folder):
    release = told(vm, "uname -r")
    headers = folder / "headers"
    unpack_headers(release, headers)
    module = folder / "module"
    module.mkdir()
    (module / "Makefile").write_text("obj-m := hello.o\n")
    (module / "hello.c").write_text(
        "#include <linux/module.h>\n"
        'static int __init hello(void) { pr_alert("built on a share\\n"); return 0; }\n'
        "static void __exit bye(void) {}\n"
        'module_init(hello); module_exit(bye); MODULE_LICENSE("GPL");\n'
    )
    for place in (
        "/usr/src",
        *(f"/usr/lib/{path.name}" for path in (headers / "usr/lib").iterdir()),
    ):
        vm.shares.add(ShareConfig.parse(f"{headers}{place}:{place}"))
    told(vm, f"make -C /usr/src/linux-headers-{release} M={PLACE}/module modules", timeout=900)
    assert (module / "hello.ko").exists()
    told(vm, f"/run/ringzero/tools/bin/busybox insmod {PLACE}/module/hello.ko")
    assert "built on a share" in told(vm, "/run/ringzero/tools/bin/busybox dmesg")
