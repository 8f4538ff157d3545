"""Interrupt messages into KVM's local APICs: irqfds, single messages, ends of interrupts.

KVM's routing table has two kinds of entries here. The numbers of the I/O
APIC's pins hold the level-triggered messages, of whose end KVM tells for those
numbers alone; those behind them belong to irqfds.
"""

from __future__ import annotations

import os
import threading

from ringzero.host.kvm import abi as kvm
from ringzero.host.kvm import fd as kvmfd

# Messages whose structures are kept; guests use some tens, and a hostile one any number.
KEPT_MESSAGES = 256
# Of a message's data (SDM vol. 3A, 11.11.2): trigger mode and delivery mode, 0 being "fixed".
LEVEL_TRIGGERED = 1 << 15
DELIVERY_MODE = 0x700
# Of a message's address (11.11.1): destination, redirection hint, logical destination mode.
DESTINATION = 0xFF << 12
NOT_ONE_APIC = 3 << 2

# Address and data, as a device writes them.
Message = tuple[int, int]


def is_immediate(message: Message) -> bool:
    """Return whether KVM hands this message over within the write to its irqfd.

    So it does with one that names one local APIC. Others may be left to a worker
    of the kernel, and a state saved in between would lack the interrupt.
    """
    address, data = message
    if data & (LEVEL_TRIGGERED | DELIVERY_MODE) or address & NOT_ONE_APIC:
        return False
    return address & DESTINATION != DESTINATION


class Messages:
    """The messages of one machine whose I/O APIC has `pins`.

    There are as many irqfds, because each pin sends one message at a time; none
    if not `irqfds`. All methods may be called from any thread.
    """

    def __init__(self, vm: kvmfd.KvmFd, pins: int, *, irqfds: bool) -> None:
        self._vm = vm
        self._pins = pins
        self._lock = threading.Lock()
        self._structures: dict[Message, kvm.Msi] = {}
        self._levels: list[Message] = []
        self._room = pins if irqfds else 0
        # What each irqfd sends, in the order of their numbers; the next one to be given away.
        self._routed: list[Message] = []
        self._irqfds: dict[Message, int] = {}
        self._descriptors: list[int] = []
        self._next = 0
        self._closed = False

    def send(self, address: int, data: int) -> bool:
        """Send one message; False when it is known that nobody took it.

        One that was taken has an irqfd from then on, where KVM hands it over
        at once: a device's interrupt is one write without a structure.
        """
        message = (address, data)
        with self._lock:
            if self._closed:
                return False
            irqfd = self._irqfds.get(message)
            if irqfd is not None:
                os.eventfd_write(irqfd, 1)
                return True
            if data & LEVEL_TRIGGERED and message not in self._levels:
                # A pin that was programmed anew leaves its old message behind.
                self._levels = [*self._levels, message][-self._pins :]
                self._write_routes()
            try:
                taken = self._vm.pass_struct(kvm.SIGNAL_MSI, self._structure(message)) > 0
            except OSError:
                # The guest chose an address or a mode that means nothing to any APIC.
                return False
            if taken and self._room and is_immediate(message):
                self._open(message)
            return taken

    def close(self) -> None:
        """Give the descriptors back; nothing is sent any more."""
        with self._lock:
            self._closed = True
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()
            self._irqfds.clear()

    def _structure(self, message: Message) -> kvm.Msi:
        found = self._structures.get(message)
        if found is None:
            if len(self._structures) >= KEPT_MESSAGES:
                self._structures.clear()
            address, data = message
            found = self._structures[message] = kvm.Msi(
                address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data & 0xFFFFFFFF
            )
        return found

    def _open(self, message: Message) -> None:
        """Give `message` an irqfd: a new one, or the one that was given away longest ago."""
        number = len(self._descriptors)
        if number < self._room:
            try:
                self._descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            except OSError:
                # The process has no descriptors left: it has to do with these.
                self._room = number
                return
            self._routed.append(message)
            self._write_routes()
            request = kvm.Irqfd(fd=self._descriptors[number], gsi=self._pins + number)
            self._vm.set(kvm.IRQFD, request)
        else:
            number = self._next
            self._next = (number + 1) % self._room
            del self._irqfds[self._routed[number]]
            self._routed[number] = message
            self._write_routes()
        self._irqfds[message] = self._descriptors[number]

    def _write_routes(self) -> None:
        """Tell KVM of all routes; what was in use before is in use no more on return."""
        routes = [*enumerate(self._levels), *enumerate(self._routed, self._pins)]
        table = kvm.array_of(kvm.IrqRoutingHeader, kvm.IrqRoutingEntry, len(routes))
        table.header.nr = len(routes)
        for entry, (gsi, (address, data)) in zip(table.entries, routes, strict=True):
            entry.gsi, entry.type = gsi, kvm.IRQ_ROUTING_MSI
            entry.u.msi.address_lo = address & 0xFFFFFFFF
            entry.u.msi.address_hi = address >> 32
            entry.u.msi.data = data & 0xFFFFFFFF
        self._vm.set(kvm.SET_GSI_ROUTING, table)
