"""The generation identifier: in memory, changed with one edge, found by a stock kernel."""

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.core.irq import IrqLine
from ringzero.core.memory import GuestMemory
from ringzero.devices.chips.vmgenid import VmGenerationId, VmGenerationIdState
from ringzero.errors import HostError, StateError


def build(memory=None):
    levels = []
    memory = memory or GuestMemory([(0, 1 << 16)])
    return VmGenerationId(memory, 0x8000, IrqLine(levels.append)), memory, levels


def test_identifier_lies_in_memory_and_differs_between_machines():
    first, memory, levels = build()
    second, _, _ = build()
    assert memory.read(0x8000, 16) == first.identifier != second.identifier
    assert levels == []


def test_renewal_is_written_before_it_is_told():
    device, memory, _ = build()
    seen = []
    line = IrqLine(lambda level: seen.append((level, memory.read(0x8000, 16))))
    device._line = line
    device.renew(b"new" + bytes(13))
    assert seen == [(True, b"new" + bytes(13)), (False, b"new" + bytes(13))]
    assert device.save() == VmGenerationIdState(b"new" + bytes(13))


def test_reset_keeps_the_identifier_and_mends_the_memory():
    device, memory, _ = build()
    memory.write(0x8000, bytes(16))
    identifier = device.identifier
    device.reset()
    assert memory.read(0x8000, 16) == identifier == device.identifier


@pytest.mark.parametrize("size", [0, 15, 17])
def test_other_sizes_are_refused(size):
    device, memory, _ = build()
    before = memory.read(0x8000, 16)
    with pytest.raises(StateError):
        device.renew(bytes(size))
    with pytest.raises(StateError):
        device.restore(VmGenerationIdState(bytes(size)))
    assert memory.read(0x8000, 16) == before


@pytest.mark.boot
@pytest.mark.engine
def test_a_stock_kernel_reseeds_at_the_event():
    """Debian's general kernel has the driver built in (its cloud kernel has none)."""
    from ringzero.image.micro import Recipe, ensure
    from ringzero.vm.machine import Machine

    try:
        image = ensure(Recipe("full", kernel="linux-image-amd64"))
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    config = MachineConfig.create(
        kernel=image.kernel,
        initrd=image.initrd,
        command_line=f'{image.command_line} dyndbg="file drivers/char/random.c +p"',
        memory="512M",
        agent=True,
    )
    with Machine(config) as vm:
        bound = vm.run("ls -d /sys/bus/acpi/drivers/vmgenid/*:*").stdout
        assert bound.startswith(b"/sys/bus/acpi/drivers/vmgenid/"), bound
        device = vm.board.parts["vmgenid"]
        with vm.frozen():
            device.renew(bytes(range(16)))
        said = b"crng reseeded due to virtual machine fork"
        log = vm.run(f"for i in $(seq 50); do dmesg | grep -q '{said.decode()}' && break; "
                     "sleep 0.1; done; dmesg; cat /proc/interrupts").stdout  # fmt: skip
        assert said in log, log.decode()[-4000:]
