"""Saved translations: used when ours and whole, otherwise as if they were not there."""

import gc
import os
import struct
import sys
import zlib

import pytest

import ringzero
from ringzero.core.memory import GuestMemory
from ringzero.engine.soft import code, translations
from ringzero.engine.soft.translations import _HEADER, _places
from ringzero.errors import HostError
from tests.isa.guest import QuietInterrupts

pytestmark = [pytest.mark.engine, pytest.mark.boot]
SCRIPT = "uname -a; seq 2000 | sha256sum; awk 'BEGIN { print 1 / 3 }'; dmesg | wc -l"
MORE = "find / -xdev | sort | md5sum; dc -e '2 100 ^ p'; echo a b | sed s/a/c/ | tr a-z A-Z | gzip"


@pytest.fixture(scope="module")
def image():
    from ringzero.image.micro import ensure

    try:
        return ensure()
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")


@pytest.fixture(scope="module")
def native():
    from ringzero.engine.soft.engine import host_tsc_hz
    from ringzero.engine.soft.x86.native import native_engine

    host_tsc_hz()
    return native_engine()


@pytest.fixture
def cache(native, tmp_path, monkeypatch):
    """An empty cache, but for the engine, which is loaded already."""
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path))
    return tmp_path


def boot(image, room=None):
    """Boot, run SCRIPT; return its output and the translator's counters.

    `room` bytes are left for new code before everything is dropped.
    """
    # A machine that an earlier test forgot would hold the place that saved code needs.
    gc.collect()
    with ringzero.Machine(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=image.command_line,
        memory="128M",
        agent=True,
        engine="soft",
    ) as machine:
        code = machine.parts.vm.code
        if room is not None:
            code.out = code.data - room
        result = machine.run(SCRIPT, timeout=120)
        assert (code.count_flushes > 0) == (room is not None)
        counts = (code.count_adopted, code.count_blocks)
    assert result.exit_code == 0
    return result.stdout, *counts


@pytest.fixture(scope="module")
def saved(native, image, tmp_path_factory):
    """What a first boot gives: output, blocks translated, and the file it leaves."""
    directory = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_CACHE_DIR", str(directory))
        output, adopted, blocks = boot(image)
    assert adopted == 0
    (file,) = (directory / "translations").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    return output, blocks, file.read_bytes()


@pytest.fixture
def place(cache, native):
    """Where the file goes, in a directory that is there."""
    path = cache / "translations" / native.objects.key
    path.parent.mkdir(mode=0o700)
    return path


def write(path, data, mode=0o600):
    path.write_bytes(data)
    path.chmod(mode)


def loads(native):
    """Whether a new machine takes over what is saved."""
    from ringzero.engine.soft.x86.vm import X86SoftVm

    vm = X86SoftVm(native, GuestMemory([(0, 1 << 20)]), [], 1_000_000_000)
    vm.create_vcpu(0, QuietInterrupts())
    used = vm.code.out != vm.code.region_start
    vm.close()
    return used


def test_second_machine_adopts(saved, place, image):
    output, blocks, data = saved
    write(place, data)
    again, adopted, anew = boot(image)
    first_lines, second_lines = output.splitlines(), again.splitlines()
    assert second_lines[:3] == first_lines[:3]
    assert adopted > 100
    assert anew < blocks / 2


def test_what_no_later_run_would_find_is_not_saved(saved, place, image, monkeypatch):
    """A kernel patches itself: each boot translates what it is before that, and leaves the rest."""
    # All that there is at a machine's end.
    monkeypatch.setattr(code, "EARLY", 1)
    write(place, saved[2])
    one = place.stat().st_ino
    _, _, anew = boot(image)
    assert anew > translations.WORTH_SAVING
    assert place.stat().st_ino == one
    # Programs that have not run before are found by later runs.
    monkeypatch.setattr(sys.modules[__name__], "SCRIPT", MORE)
    boot(image)
    two = place.stat().st_ino
    assert two != one
    assert boot(image)[1] > 100
    assert place.stat().st_ino == two


def test_pages_that_are_expected_to_run_are_taken_over_before(saved, place, native):
    """By their content, one of another content not, whatever numbers are given."""
    from ringzero.engine.soft.x86.vm import X86SoftVm

    _, _, data = saved
    write(place, data)
    places = _places(*_HEADER.unpack_from(data)[4:])
    addresses = memoryview(data)[places[4] : places[5]].cast("I")
    memory = GuestMemory([(0, 1 << 20)])
    vm = X86SoftVm(native, memory, [], 1_000_000_000)
    vm.create_vcpu(0, QuietInterrupts())
    wanted = {3: 0, 200: 7, 255: 1}
    for page, number in wanted.items():
        content = data[places[5] + number * 4096 :][:4096]
        memory.write(page * 4096, content)
    memory.write(5 * 4096, b"\xf4" * 4096)
    vm.expect(told(3, 200, 5, 256, 0xFFFF_FFFF, 255, 3))
    assert with_code(vm) == {page: addresses[number] for page, number in wanted.items()}
    assert vm.code.count_adopted >= len(wanted)
    assert [page for page in range(256) if vm.arenas.sought[page]] == [3, 5, 200, 255]
    # What is written to has no code any more.
    memory.write(3 * 4096, b"\xf4")
    assert with_code(vm).keys() == {200, 255}
    assert vm.code_pages() == told(200, 255)
    vm.close()


def told(*pages):
    """What a machine tells of pages with code, of no file that there is."""
    return translations._pack(bytes(16), [(page, 0) for page in pages])


def with_code(vm):
    return {page: word for page, word in enumerate(vm.arenas.words) if word}


@pytest.fixture
def guests(saved, place, native):
    """What makes machines of the same memory, a private copy, in which three pages have code."""
    from ringzero.engine.soft.x86.vm import X86SoftVm

    write(place, saved[2])
    contents = _places(*_HEADER.unpack_from(saved[2])[4:])[5]
    memory = GuestMemory([(0, 1 << 20)])
    for page, number in {3: 0, 200: 7, 255: 1}.items():
        memory.write(page * 4096, saved[2][contents + number * 4096 :][:4096])
    memory.write(5 * 4096, b"\xf4" * 4096)
    image = memory.host.freeze()
    made = []

    def make():
        vm = X86SoftVm(native, GuestMemory([(0, 1 << 20)], image), [], 1_000_000_000)
        vm.create_vcpu(0, QuietInterrupts())
        made.append(vm)
        return vm

    yield make
    for vm in made:
        vm.close()
    image.close()


def test_what_came_of_it_is_told_to_the_next(guests, monkeypatch):
    """Of the same file, it looks at no page; of another one, at all of them."""
    one = guests()
    known = one.expect(told(3, 200, 5, 255))
    found = with_code(one)
    assert found.keys() == {3, 200, 255}
    one.close()
    two = guests()
    with monkeypatch.context() as patch:
        patch.setattr(translations.Translations, "_adopt", lambda *_: pytest.fail("compared"))
        assert two.expect(known) is None
    assert with_code(two) == found
    assert two.code.count_adopted == 3
    assert [page for page in range(256) if two.arenas.sought[page]] == [3, 5, 200, 255]
    two.memory.write(200 * 4096, b"\xf4")
    assert with_code(two).keys() == {3, 255}
    two.close()
    file = two._translations.path
    file.with_suffix(".new").write_bytes(file.read_bytes())
    file.with_suffix(".new").chmod(0o600)
    file.with_suffix(".new").rename(file)
    three = guests()
    assert three.expect(known) not in (None, known)
    assert with_code(three) == found


def test_what_was_written_before_is_not_taken_from_a_note(guests):
    one = guests()
    known = one.expect(told(3, 200, 5, 255))
    one.close()
    two = guests()
    two.memory.write(3 * 4096 + 17, b"other")
    assert two.expect(known) is None
    assert with_code(two).keys() == {200, 255}
    assert not two.arenas.sought[3]
    two.close()
    three = guests()
    three.memory.write(3 * 4096 + 17, b"other")
    # Nor written down for those in whose memory it is as ever.
    again = three.expect(told(3, 200, 5, 255))
    assert set(translations._unpack(again)[1][::2]) == {200, 5, 255}


def test_a_damaged_note_is_none(guests):
    one = guests()
    known = one.expect(told(3, 200, 5, 255))
    one.close()
    for at in range(len(known)):
        damaged = bytearray(known)
        damaged[at] ^= 1 << at % 8
        assert not translations._unpack(bytes(damaged))[1], at
        assert not translations._unpack(known[:at])[1], at
    two = guests()
    assert two.expect(bytes(damaged)) is None
    assert not with_code(two)


def test_full_region(saved, place, image, native):
    """Saved code that was dropped is not adopted any more, nor saved again."""
    output, _, data = saved
    write(place, data)
    again, _, _ = boot(image, room=2 << 20)
    assert again.splitlines()[:3] == output.splitlines()[:3]
    assert place.read_bytes() != data
    assert loads(native)
    assert boot(image)[0].splitlines()[:3] == output.splitlines()[:3]


def test_a_run_that_fills_too_much_leaves_what_it_had_early(place, image, native, monkeypatch):
    monkeypatch.setattr(code, "EARLY", 0.02)
    monkeypatch.setattr(translations, "LARGEST", 0.05)
    output, _, _ = boot(image)
    first = place.read_bytes()
    assert loads(native)
    # The next run takes its pages from there, and does not replace them with too much.
    again, adopted, _ = boot(image)
    assert again.splitlines()[:3] == output.splitlines()[:3] and adopted > 20
    assert not place.exists() or place.read_bytes() == first


def test_a_page_outside_the_records(saved, place, native):
    data = bytearray(saved[2])
    addresses = _places(*_HEADER.unpack_from(data)[4:])[4]
    struct.pack_into("<I", data, addresses, 0x1000_0000)
    struct.pack_into("<I", data, 0, zlib.crc32(data[4:]))
    write(place, data)
    assert not loads(native)


def test_whole_file_loads(saved, place, native):
    write(place, saved[2])
    assert loads(native)


def test_a_file_that_was_right_is_not_read_again_until_it_changes(
    saved, place, native, monkeypatch
):
    write(place, saved[2])
    assert loads(native)
    with monkeypatch.context() as patched:
        patched.setattr(translations.binascii, "crc32", lambda *_: pytest.fail("read again"))
        assert loads(native)
    damaged = bytearray(saved[2])
    damaged[-1] ^= 1
    write(place, damaged)
    assert not loads(native)
    place.with_name(f"{place.name}.checked").write_bytes(b"0 0 0 0")
    write(place, saved[2])
    assert loads(native)


def test_nothing_saved(cache, native):
    assert not loads(native)


@pytest.mark.parametrize("where", [0, 8, 12, 41, 48, 56, 64, 72, 80, 88, 96, 5000, -5000, -1])
def test_a_flipped_bit(saved, place, native, where):
    data = bytearray(saved[2])
    data[where] ^= 0x10
    write(place, data)
    assert not loads(native)


def test_no_bit_of_the_header_may_differ(saved, place, native):
    write(place, saved[2])
    with place.open("r+b", buffering=0) as file:
        for bit in range(_HEADER.size * 8):
            old = saved[2][bit // 8]
            os.pwrite(file.fileno(), bytes([old ^ 1 << bit % 8]), bit // 8)
            assert not loads(native), bit
            os.pwrite(file.fileno(), bytes([old]), bit // 8)
    assert loads(native)


@pytest.mark.parametrize("keep", [0, 1, 95, 96, 4096, -1, -4096])
def test_a_short_file(saved, place, native, keep):
    write(place, saved[2][:keep])
    assert not loads(native)


def test_a_long_file(saved, place, native):
    write(place, saved[2] + b"\0")
    assert not loads(native)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_others_may_write_it(saved, place, native, mode):
    write(place, saved[2], mode)
    assert not loads(native)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_somebody_elses(saved, place, native):
    write(place, saved[2])
    os.chown(place, 12345, 12345)
    assert not loads(native)


def test_a_symbolic_link(saved, place, native):
    target = place.parent / "elsewhere"
    write(target, saved[2])
    place.symlink_to(target)
    assert not loads(native)


def test_a_directory_in_its_place(place, native):
    place.mkdir()
    assert not loads(native)


def test_a_pipe_in_its_place(place, native):
    os.mkfifo(place, 0o600)
    assert not loads(native)


def test_a_damaged_file_is_replaced(saved, place, image, native):
    write(place, saved[2][:-1])
    _, adopted, _ = boot(image)
    assert adopted == 0
    assert loads(native)
