"""A guest's ways to its user: the serial line, the console, and the ports of its agent.

`Lines` is in every machine; `AgentPorts` in one whose guest is ringzero's own.
"""

from __future__ import annotations

from collections.abc import Callable

from ringzero.devices.virtio.kinds.console import ConsolePort
from ringzero.errors import GuestError
from ringzero.vm.guest.agent import Agent
from ringzero.vm.guest.channels import PortChannels
from ringzero.vm.guest.line import Console, Line
from ringzero.vm.guest.output import OutputBatch
from ringzero.vm.guest.protocol import MAX_SLOTS, PORTS, STDIN, TTY, port_name, slot_ports

# The name that Linux gives port 0 of the console device is hvc0, whatever we call it.
CONSOLE_PORT_NAME = "org.ringzero.console"
# Where ringzero's own guests wait to be told who a copy is (`ringzero.vm.guest.identity`).
IDENTITY_PORT = "org.ringzero.identity"


class Lines:
    """The serial line and the console, whose output is passed on by threads of their own."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        self.serial = Line()
        self.console = Console()
        self.serial_output = OutputBatch(self.serial.emit, on_fault=on_fault)
        self.console_port = ConsolePort(
            CONSOLE_PORT_NAME,
            lambda data: self.console_output.write(data),  # noqa: PLW0108 - made below
            late=True,
        )
        self.console_output = OutputBatch(
            self._print,
            lambda: self.console_port.hold(True),
            lambda: self.console_port.hold(False),
            on_fault=on_fault,
        )
        self.console_port.on_room = self.console.room
        self.console.connect(self.console_port.push)

    def _print(self, data: bytes) -> None:
        self.console_port.taken()
        self.console.emit(data)

    def flush(self) -> None:
        """Return when the user has all output, or does not read."""
        self.serial_output.flush()
        self.console_output.flush()

    def close(self) -> None:
        """Pass on what waits, and end."""
        self.console_output.close()
        self.serial_output.close()


class AgentPorts:
    """The agent, its channels, and the port by which a copied guest hears who it is."""

    def __init__(self, on_fault: Callable[[BaseException], None]) -> None:
        further = range(1, MAX_SLOTS)
        self.channels = PortChannels(
            PORTS,
            closed=[port_name(STDIN, slot) for slot in range(MAX_SLOTS)],
            slots=[slot_ports(slot) for slot in further],
            terminals=[port_name(TTY, slot) for slot in further],
        )
        self.agent = Agent(self.channels)
        self.channels.receive = self.agent.receive
        self.channels.on_sent = self.agent.sent
        self.channels.on_fault = self.agent.on_fault = on_fault
        self.identity_port = ConsolePort(IDENTITY_PORT, lambda data: None)
        self.agent.listens = lambda: self.identity_port.guest_open
        # As the guest numbers them, behind the console.
        self.ports = [*self.channels.ports, self.identity_port]

    def start(self) -> None:
        """Begin to carry bytes."""
        self.channels.start()
        self.agent.start()

    def introduce(self, record: bytes) -> None:
        """Give the guest of a copy its identity's record; its vCPUs do not run yet.

        A guest that does not listen yet finds the record when it does.
        """
        self.identity_port.push(record)

    def close(self, why: GuestError) -> None:
        """Deliver what the guest has sent; then everybody who waits is told `why` it is gone."""
        self.channels.close()
        self.agent.close(why)
