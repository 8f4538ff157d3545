"""Files in the guest's memory: where they are, who has them, and what of it is copied."""

import pytest

from ringzero import Machine
from ringzero.config.devices.pmem import PmemConfig
from ringzero.errors import ConfigError, DiskLockedError, HostError, StateError
from ringzero.units import GIB, MIB
from tests.board.kernels import elf
from tests.engine.fake import FakeEngine


@pytest.fixture
def kernel(tmp_path):
    path = tmp_path / "vmlinux"
    path.write_bytes(elf())
    return path


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content" + bytes(3 * MIB))
    return path


def machine(kernel, *pmems, memory="64M"):
    return Machine(kernel=kernel, memory=memory, pmems=list(pmems), engine=FakeEngine())


def place(machine, number=0):
    """Return where the guest has a file: (base, size)."""
    device = machine.parts.devices.backends[f"pmem{number}"].pmem
    return device.base, device.size


def test_where_they_are(kernel, file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"another")
    with machine(kernel, PmemConfig(file), PmemConfig(other, read_only=True)) as vm:
        assert [place(vm, n) for n in (0, 1)] == [
            (4 * GIB, 4 * MIB),
            (4 * GIB + 128 * MIB, 2 * MIB),
        ]
        memory = vm.parts.memory
        assert memory.read(4 * GIB, 7) == b"content"
        assert memory.read(4 * GIB + 128 * MIB, 8) == b"another\0"
        memory.write(4 * GIB, b"CONTENT")
        memory.write(4 * GIB + 128 * MIB, b"ANOTHER")
    assert file.read_bytes()[:7] == b"CONTENT" and other.read_bytes() == b"another"
    # Behind all of RAM.
    with machine(kernel, PmemConfig(file), memory="3200M") as vm:
        assert place(vm)[0] == 4 * GIB + 128 * MIB
        assert vm.parts.memory.read(place(vm)[0], 7) == b"CONTENT"


def test_one_that_is_written_to_has_one_machine(kernel, file):
    with (
        machine(kernel, PmemConfig(file)) as vm,
        pytest.raises(DiskLockedError, match="in use"),
    ):
        machine(kernel, PmemConfig(file, read_only=True))
    with (
        machine(kernel, PmemConfig(file, read_only=True)) as vm,
        machine(kernel, PmemConfig(file, read_only=True)) as other,
    ):
        for one in (vm, other):
            assert one.parts.memory.read(place(one)[0], 7) == b"content"


def test_copies(kernel, file):
    with machine(kernel, PmemConfig(file)) as vm:
        with pytest.raises(StateError, match="two machines'"):
            vm.fork()
        vm.seed(same_files=True).close()
    with machine(kernel, PmemConfig(file, read_only=True)) as vm:
        base = place(vm)[0]
        with vm.fork()[0] as copy:
            assert copy.parts.memory.read(base, 7) == b"content"
        vm.parts.memory.write(base, b"own")
        for same_files in (False, True):
            with pytest.raises(StateError, match="read-only, which no copy has"):
                vm.seed(same_files=same_files)


def test_files_that_cannot_be(kernel, file, tmp_path):
    empty = tmp_path / "empty"
    empty.touch()
    for path, message in ((empty, "is empty"), (tmp_path / "missing", "No such file")):
        with pytest.raises(HostError, match=message):
            machine(kernel, PmemConfig(path))
    with pytest.raises(ConfigError, match="attached twice"):
        machine(kernel, PmemConfig(file), PmemConfig(file, read_only=True))
    assert "is empty" in PmemConfig(empty).file_faults()[0]
    assert PmemConfig.parse(f"{file},ro") == PmemConfig(file, read_only=True)


def test_one_that_became_shorter_is_looked_at_no_further(kernel, file, monkeypatch):
    from ringzero.vm.ends.backends import pmem

    sizes = pmem.room_for([PmemConfig(file)])
    file.write_bytes(b"short")
    monkeypatch.setattr(pmem, "room_for", lambda devices: sizes)
    with machine(kernel, PmemConfig(file)) as vm:
        assert vm.parts.memory.read(place(vm)[0], 8) == b"short\0\0\0"
        assert vm.parts.memory.read(place(vm)[0] + 3 * MIB, 8) == bytes(8)
