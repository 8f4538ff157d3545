"""What a machine begins with: its memory, and a kernel and an initrd on their way into it.

Little code is needed for it. Whoever has a process's start to make short lays it
first, and loads all that a machine is made of while the kernel is being copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringzero.board.contract import BOARDS
from ringzero.config.machine import MachineConfig
from ringzero.core.memory import GuestMemory
from ringzero.engine.contract import Engine
from ringzero.host.memory import MemoryImage
from ringzero.records import replace
from ringzero.vm import boot

if TYPE_CHECKING:
    from ringzero.board.boot.loading import Loading


class Groundwork:
    """Memory for the machine of `config` on `engine`, with `content` or with its kernel.

    With `later` the kernel is read by `read` only: the machine may go on from a template instead.
    `loading` is None where there is no kernel to load, or not yet. Raises ConfigError,
    NotFoundError, GuestImageError, HostError.
    """

    def __init__(
        self,
        config: MachineConfig,
        engine: Engine,
        content: MemoryImage | None = None,
        *,
        later: bool = False,
    ) -> None:
        board = BOARDS.get(config.board)
        self.config = config = _completed(config, saved=content is not None)
        self.engine = engine
        # Everything that can be wrong with files is found before memory is taken.
        begins = boot.read(config) if content is None and not later else boot.NOTHING
        self._take(begins)
        # Whether there may be a kernel that was not read yet.
        self.waits = later
        files = _room_for_files(config)
        # Where files of the host's lie in guest-physical memory, in the order of their devices.
        self.files = board.file_layout(config.memory, files)
        self.memory = GuestMemory(
            board.ram_layout(config.memory),
            content,
            large_pages=engine.likes_large_pages,
            files=self.files,
        )
        self.loading: Loading | None = None
        if self.kernel is not None:
            from ringzero.board.boot.loading import Loading

            self.loading = Loading(self.memory, self.kernel, self.initrd)

    def adapt(self, config: MachineConfig) -> bool:
        """Be that of `config`, where other devices and another command line make the difference.

        False where it is another machine's.
        """
        config = _completed(config)
        ours = self.config
        alike = replace(
            config, name=ours.name, devices=ours.devices, command_line=ours.command_line
        )
        # A guest's boot loader, or an agent that is brought into it, has a say in these.
        files = BOARDS.get(config.board).file_layout(config.memory, _room_for_files(config))
        if (
            self.waits
            or alike != ours
            or files != self.files
            or config.agent
            or config.boot_entry is not None
        ):
            return False
        self.config, self.command_line = config, config.command_line
        return True

    def read(self) -> None:
        """Read the kernel where that was put off. Raises GuestImageError, HostError."""
        if self.waits:
            self.waits = False
            self._take(boot.read(self.config))

    def _take(self, begins: boot.Beginning) -> None:
        self.kernel, self.initrd = begins.kernel, begins.initrd
        self.command_line = begins.command_line

    def loaded(self) -> None:
        """Forget what the machine has booted from, or would have."""
        self.waits = False
        self.kernel, self.initrd, self.loading = None, memoryview(b""), None

    def close(self) -> None:
        """Give the memory back, which nobody uses any more."""
        if self.loading is not None:
            self.loading.join()
        self.memory.close()


def _room_for_files(config: MachineConfig) -> list[int]:
    """Return how many bytes of guest-physical memory each file takes that it is to have."""
    devices: list[Any] = [device for device in config.devices if device.kind == "pmem"]
    if not devices:
        return []
    from ringzero.vm.ends.backends.pmem import room_for

    return room_for(devices)


def _completed(config: MachineConfig, *, saved: bool = False) -> MachineConfig:
    """Return a description with what it leaves open."""
    config = boot.with_transport(config, saved=saved)
    if config.cpu is None:
        # Whoever looks at the machine, or saves it, finds the model that it has.
        config = replace(config, cpu=BOARDS.get(config.board).architecture.default_model)
    return config
