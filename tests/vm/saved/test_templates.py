"""The store of templates: what one is of, what is trusted, what killed makers leave. No guest."""

import os
import random
import shutil
import struct
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ringzero.config.devices.net import NetConfig
from ringzero.config.devices.share import ShareConfig
from ringzero.config.devices.vsock import VsockConfig
from ringzero.config.machine import MachineConfig
from ringzero.errors import HostError, NotFoundError, StateError
from ringzero.host.memory import HostMemory
from ringzero.records import replace
from ringzero.vm.saved import templates, workingset
from ringzero.vm.saved.templates import Key, Template, Templates, key_of
from tests import chance
from tests.vm.seeds import content, image
from tests.vm.seeds import seed as made_up


def engine(name="soft", code="code", keeps=True):
    return SimpleNamespace(name=name, code_version=lambda: code, keeps_templates=keeps)


ENGINE = engine()
# Bits that flip in each file, at places that the seed gives.
FLIPS = 40 if os.environ.get("RINGZERO_FUZZ", "1") == "1" else 200
SEED = chance.seed()
# CLOCK_REALTIME_COARSE of clock_gettime(2), from which file systems have their times.
COARSE = 5
LINE = "quiet ringzero.agent"


@pytest.fixture
def config(tmp_path):
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_bytes(name.encode())
    return MachineConfig.create(
        kernel=tmp_path / "vmlinuz",
        initrd=tmp_path / "initrd",
        command_line=LINE,
        agent=True,
        nets=["user"],
    )


@pytest.fixture
def store(tmp_path):
    return Templates(tmp_path / "cache" / "templates")


def key(config, on=ENGINE):
    found = key_of(config, on)
    assert isinstance(found, Key), found
    return found


def write(work, wanted, seed):
    """Write a template of what a seed holds."""
    memory = HostMemory("template", seed.memory.size, seed.memory)
    try:
        templates.write(work, wanted, seed.state, memory, seed.taken)
    finally:
        memory.close()


def make(store, config, text=b"one"):
    """Keep a made-up template of `config`; return its key."""
    wanted = key(config)
    with store.making(wanted) as work, made_up(work.parent, text) as seed:
        write(work, wanted, seed)
    (store.root / "disk.img").unlink()
    return wanted


# ---- what it is of ----------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"name": "web"},
        {"engine": "soft"},
        {"cpu": "x86-64-v2"},
        {"devices": (NetConfig("user", mac="02:00:00:00:00:01", hostname="web"),)},
        {"devices": (NetConfig("user", host=False, allow=("192.0.2.1",), rate=4096),)},
    ],
    ids=str,
)
def test_what_comes_in_afterwards_is_no_part_of_the_key(config, change):
    assert key(replace(config, **change)) == key(config)


@pytest.mark.parametrize(
    "change",
    [
        {"memory": 256 << 20},
        {"cpus": 2},
        {"cpu": "x86-64-v2-amd"},
        {"command_line": f"{LINE} debug"},
        {"initrd": None},
        {"devices": ()},
        {"devices": (NetConfig("none"),)},
        {"devices": (NetConfig("user", mtu=9000),)},
        {"devices": (NetConfig("user", queues=2),)},
        {"devices": (NetConfig("user"), NetConfig("none"))},
        {"devices": (NetConfig("lan"),)},
        {"devices": (NetConfig("user"), VsockConfig(Path("/tmp/none.sock")))},
    ],
    ids=str,
)
def test_what_the_guest_sees_is_part_of_the_key(config, change):
    assert key(replace(config, **change)).name != key(config).name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((NetConfig("lan"),), (NetConfig("another", rate=1 << 20),)),
        ((NetConfig("tap", "tap0"),), (NetConfig("passt", "/tmp/none.sock"),)),
        ((NetConfig("user"), NetConfig("user")), (NetConfig("user"), NetConfig("lan"))),
        ((VsockConfig(Path("/tmp/a")),), (VsockConfig(Path("/tmp/b"), 77),)),
    ],
    ids=str,
)
def test_which_network_and_socket_there_is_comes_in_afterwards(config, one, other):
    found = key(replace(config, devices=one))
    assert found == key(replace(config, devices=other))
    # The guest does what it would do, and nobody answers.
    wanted, seen = (
        [net.guest_setup(number) for number, net in enumerate(described.nets)]
        for described in (replace(config, devices=one), found.config)
    )
    assert seen == wanted
    for setup, net in zip(wanted, found.config.nets, strict=True):
        assert net.network == ("user" if setup == "static" else "none")
    assert not found.config.faults()


def test_which_folders_are_shared_is_no_part_of_the_key(config):
    shares = [ShareConfig(Path("/tmp"), f"/src{n}", read_only=bool(n)) for n in range(2)]
    room = key(replace(config, devices=(ShareConfig.room(),)))
    assert key(replace(config, devices=tuple(shares))) == room
    assert key(replace(config, devices=tuple(shares[:1]))) == room
    other = replace(shares[0], transport="9p")
    assert key(replace(config, devices=(other,))).name != room.name


def test_engines_and_their_code_are_part_of_the_key(config):
    others = [engine(name="another"), engine(code="newer")]
    assert len({key(config).name, *(key(config, other).name for other in others)}) == 3
    assert "no templates" in key_of(config, engine(keeps=False))


@pytest.mark.parametrize("name", ["vmlinuz", "initrd"])
def test_a_file_that_is_another_is_part_of_the_key(config, tmp_path, name):
    before = key(config).name
    status = (tmp_path / name).stat()
    (tmp_path / name).write_bytes(name.encode()[::-1])
    # As an archive's unpacker, or a forger, would have it.
    os.utime(tmp_path / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert key(config).name != before


def test_a_stand_in_stands_for_itself(config):
    found = key(config)
    assert key(found.config) == found
    assert found.config.nets[0].mac is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"agent": False}, "none of ringzero's own"),
        ({"command_line": "quiet"}, "none of ringzero's own"),
        ({"disks": ["/nonexistent.img"]}, "disk0"),
        ({"disks": ["/nonexistent.img,ro"]}, "disk0"),
        ({"devices": (ShareConfig(Path("/"), "/"),)}, "its root is a shared folder"),
        ({"kernel": None, "initrd": None, "command_line": ""}, "from a disk"),
        ({"kernel": "/nonexistent"}, "cannot be read"),
    ],
    ids=str,
)
def test_what_boots_says_why(config, change, why):
    fields = {"kernel": config.kernel, "initrd": config.initrd, "command_line": LINE, "agent": True}
    assert why in key_of(MachineConfig.create(**{**fields, **change}), ENGINE)


def test_an_images_own_root_may_be_there(config, tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    root = tmp_path / "cache" / "images" / "0123" / "root.erofs"
    root.parent.mkdir(parents=True)
    root.write_bytes(b"root")
    disks = MachineConfig.create(disks=[f"{root},ro,format=raw"]).devices
    before = key(replace(config, devices=disks))
    root.write_bytes(b"toor")
    assert key(replace(config, devices=disks)).name != before.name
    writable = tuple(replace(disk, read_only=False) for disk in disks)
    assert "disk0" in key_of(replace(config, devices=writable), ENGINE)


# ---- what is trusted --------------------------------------------------------------


def test_there_is_none_before_it_is_made(store, config):
    with pytest.raises(NotFoundError):
        store.take(key(config))
    assert store.entries() == []
    store.remove("nothing")
    assert store.prune(0) == []


def test_it_is_there_once_it_was_made(store, config):
    wanted = make(store, config)
    store.take(wanted).close()
    (entry,) = store.entries()
    assert (entry.name, entry.fault) == (wanted.name, "")
    assert entry.description["memory"] == config.memory
    assert 0 < entry.size < 1 << 20
    place = store.root / entry.name
    assert place.stat().st_mode & 0o777 == store.root.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.iterdir()} == {0o600}
    with store.making(wanted) as work:
        assert work is None


def test_another_description_has_another(store, config):
    make(store, config)
    with pytest.raises(NotFoundError):
        store.take(key(replace(config, cpus=2)))


def corrupt(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def replaced(path):
    """Put a copy with the same times in a file's place."""
    shutil.copy2(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


DAMAGES = {
    "magic": lambda p: corrupt(p / "state", 0),
    "checksum": lambda p: corrupt(p / "state", 8),
    "padding": lambda p: corrupt(p / "state", templates.HEADER.size - 4),
    "state": lambda p: corrupt(p / "state", -5),
    "empty state": lambda p: (p / "state").write_bytes(b""),
    "short state": lambda p: os.truncate(p / "state", 100),
    "no state": lambda p: (p / "state").rename(p / "elsewhere"),
    "memory": lambda p: corrupt(p / "memory", 0x1000),
    "short memory": lambda p: os.truncate(p / "memory", 4096),
    "touched memory": lambda p: os.utime(p / "memory"),
    "copied memory": lambda p: replaced(p / "memory"),
    "no memory": lambda p: (p / "memory").unlink(),
    "state of others": lambda p: (p / "state").chmod(0o640),
    "memory of others": lambda p: (p / "memory").chmod(0o602),
    "open to others": lambda p: p.chmod(0o750),
    "open root": lambda p: p.parent.chmod(0o777),
    "linked state": lambda p: ((p / "state").rename(p / "s"), (p / "state").symlink_to(p / "s")),
    "linked memory": lambda p: ((p / "memory").rename(p / "m"), (p / "memory").symlink_to(p / "m")),
    "linked": lambda p: (p.rename(p.parent / "x"), p.symlink_to(p.parent / "x")),
    "a fifo": lambda p: ((p / "state").unlink(), os.mkfifo(p / "state", 0o600)),
    "a file": lambda p: (shutil.rmtree(p), p.write_bytes(b"")),
    "a directory in place of the memory": lambda p: (
        (p / "memory").unlink(),
        (p / "memory").mkdir(0o700),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_was_changed_is_not_used(store, config, damage):
    wanted = make(store, config)
    damage(store.root / wanted.name)
    # NotFoundError where it is not there as a whole: it is made again as well.
    with pytest.raises((StateError, NotFoundError)):
        store.take(wanted)
    if store.root.stat().st_mode & 0o077 == 0:
        make(store, config)
        store.take(wanted).close()


@pytest.mark.parametrize("file", [templates.STATE, templates.MEMORY, workingset.FILE])
def test_a_bit_that_has_flipped_is_never_part_of_an_answer(store, config, monkeypatch, file):
    """Where it lies in what the guest gets, it is found; the hint says nothing of that."""
    # Of what a crash of the host would leave.
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    rng = random.Random(SEED)
    for _ in range(FLIPS):
        wanted = make(store, config)
        place = store.root / wanted.name
        (place / workingset.FILE).write_bytes(workingset.MAGIC + struct.pack("<QQ", 0, 8192))
        (place / workingset.FILE).chmod(0o600)
        written = os.stat(place / templates.MEMORY).st_ctime_ns
        while time.clock_gettime_ns(COARSE) <= written:
            # The host's file system has no finer clock than this.
            time.sleep(0.001)
        with (place / file).open("r+b", buffering=0) as damaged:
            at = rng.randrange(damaged.seek(0, os.SEEK_END))
            byte = os.pread(damaged.fileno(), 1, at)[0]
            os.pwrite(damaged.fileno(), bytes((byte ^ 1 << rng.randrange(8),)), at)
        try:
            found = store.take(wanted)
        except StateError:
            assert file != workingset.FILE, (SEED, at)
        else:
            assert file == workingset.FILE, (SEED, at)
            assert os.pread(found._memory.fd, 12, 0x1000) == b"same in all\0"
            found.close()
        store.remove(wanted.name)


def test_another_users_is_not_used(store, config, monkeypatch):
    wanted = make(store, config)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StateError, match="belongs to the user"):
        store.take(wanted)
    with pytest.raises(StateError), store.making(wanted):
        pytest.fail("made in another user's directory")
    with pytest.raises(StateError):
        store.check_writable()


@pytest.mark.parametrize("file", [workingset.FILE, templates.CODE])
@pytest.mark.parametrize("text", [b"", b"x" * 15, b"\xff" * 64])
def test_a_hint_is_no_more_than_that(store, config, text, file):
    wanted = make(store, config)
    hint = store.root / wanted.name / file
    hint.write_bytes(text)
    hint.chmod(0o600)
    store.take(wanted).close()
    hint.chmod(0o666)
    store.take(wanted).close()
    hint.unlink()
    store.take(wanted).close()


def test_a_state_with_fields_of_other_types_is_not_used(store, config):
    import json
    import zlib

    wanted = make(store, config)
    path = store.root / wanted.name / "state"
    found = json.loads(path.read_bytes()[templates.HEADER.size :])
    for field, value in {
        "key": 1,
        "taken": "now",
        "size": None,
        "memory": {},
        "machine": [],
    }.items():
        forged = json.dumps({**found, field: value}).encode()
        header = templates.HEADER.pack(templates.MAGIC, zlib.crc32(forged))
        path.write_bytes(header + forged)
        with pytest.raises(StateError):
            store.take(wanted)


def test_one_that_is_removed_stays_with_who_has_it(store, config):
    wanted = make(store, config)
    with_it: Template = store.take(wanted)
    store.remove(wanted.name)
    assert list(store.root.iterdir()) == [store.root / "lock"]
    assert os.pread(with_it._memory.fd, 12, 0x1000) == b"same in all\0"
    with_it.close()


def test_memory_is_what_it_was(store, config):
    wanted = key(config)
    pages = {0x3000: b"x" * 4096, 0x200000: b"y" * 70000}
    memory = image(pages, [(0x3000, b"z" * 4096)])
    with store.making(wanted) as work, made_up(work.parent) as seed:
        write(work, wanted, replace(seed, memory=memory))
    found = store.take(wanted)
    written = templates.MemoryImage(found._memory)
    assert content(written) == content(memory)
    found.close()
    memory.close()


# ---- making -----------------------------------------------------------------------


def test_one_is_made_at_a_time(store, config):
    with store.making(key(config)) as work:
        assert work is not None
        with store.making(key(replace(config, cpus=2))) as second:
            assert second is None


def test_what_ends_badly_leaves_nothing(store, config):
    wanted = key(config)
    with pytest.raises(ZeroDivisionError), store.making(wanted) as work:
        (work / "memory").write_bytes(b"half")
        1 / 0  # noqa: B018 - what ends the block
    assert list(store.root.iterdir()) == [store.root / "lock"]
    with pytest.raises(NotFoundError):
        store.take(wanted)


def test_what_a_killed_maker_left_is_swept(store, config):
    make(store, config)
    left = store.root / ".partial-killed"
    left.mkdir()
    (left / "memory").write_bytes(b"half")
    make(store, replace(config, cpus=2))
    assert not left.exists()
    left.mkdir()
    store.prune(1 << 40)
    assert not left.exists()


def test_a_failure_is_remembered_for_a_while(store, config):
    wanted = key(config)
    store.check_writable()
    assert store.failure(wanted) == ""
    store.note_failure(wanted, "no guest")
    assert store.failure(wanted) == "no guest"
    note = store.root / f"{wanted.name}.failed"
    long_ago = time.time() - templates.RETRY - 1
    os.utime(note, (long_ago, long_ago))
    assert store.failure(wanted) == ""
    make(store, config)
    assert not note.exists()


def test_the_oldest_goes_first(store, config):
    keys = [make(store, replace(config, cpus=n)) for n in (1, 2, 3)]
    for age, wanted in zip((100, 300, 200), keys, strict=True):
        place, then = store.root / wanted.name, time.time() - age
        os.utime(place, (then, then))
    # To take it is to use it.
    store.take(keys[1]).close()
    size = store.entries()[0].size
    assert [entry.name for entry in store.entries()] == [keys[n].name for n in (1, 0, 2)]
    assert [entry.name for entry in store.prune(2 * size)] == [keys[2].name]
    assert len(store.prune(0)) == 2


def test_of_no_use_is_pruned(store, config):
    wanted = make(store, config)
    (store.root / wanted.name / "state").write_bytes(b"")
    (entry,) = store.entries()
    assert "damaged" in entry.fault
    assert store.prune(1 << 40) == [entry]


def test_no_right_and_no_room_are_told(store, monkeypatch):
    store.check_writable()
    full = SimpleNamespace(f_bavail=0, f_frsize=4096)
    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", lambda _: full)
        with pytest.raises(HostError, match="No space left"):
            store.check_writable()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HostError, match="Permission denied"):
        store.check_writable()


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / "templates").write_bytes(b"")
    with pytest.raises((HostError, StateError)):
        Templates(tmp_path / "templates").check_writable()
    with pytest.raises((HostError, StateError)):
        Templates(tmp_path / "templates" / "below").check_writable()
