"""The compiled engine in this process: its entry points and its tables."""

from __future__ import annotations

import ctypes
import functools
import json
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ringzero.engine.soft import linked, opened
from ringzero.engine.soft.linked import Library, Objects
from ringzero.host.files import map_file
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.table.entry import SLOTS, FormEntry
from ringzero.jit.tables import Exits
from ringzero.jit.x86.tables import Glue, GuestTables, LoweringEntry, Translator
from ringzero.native.view import view_of

Entry = Callable[[int], int]
# Functions that Python calls, and the doors by the member of Cpu that holds their address.
RUN_INTERPRETER, RUN_TRANSLATOR = "run_interpreter", "run_translator"
HOST_TSC = "interpreter.host_tsc"
PAGE_HASH = "blocks.page_hash"
DECODE_BLOCK = "translate.decode_block"
STOP_MACHINE, RESUME_MACHINE = "exclusive.stop_machine", "exclusive.resume_machine"
WRITTEN_OUTSIDE = "mmu.written_outside"
POST_INTERRUPT, NOTIFY = "apic.post", "apic.notify"
RAISE_REASONS, CLEAR_REASONS = "irqstatus.raise_reasons", "irqstatus.clear_reasons"
RECLAIM_QUEUE = "transmit.reclaim"
DOORS = {
    "enter_code": "x_enter",
    "exit_code": "x_exit",
    "slow_code": "x_slow",
    "generic_code": "x_generic",
    "seek_code": "x_seek",
    "status_code": "flags.materialize_status",
}
# Tables of the translator: members of GuestTables and of the Tables in it, files.
COMMON_TABLES = {"stencils": "stencils.bin", "holes": "holes.bin", "blob": "blob.bin"}
GUEST_TABLES = {
    "keys": "keys.bin",
    "fused": "fused.bin",
    "lowerings": "lowerings.bin",
    "lowering_index": "lowering_index.bin",
}


class NativeEngine:
    """Loaded once per process; every vCPU uses the same code and tables."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._handlers = opened.handlers_of(objects)
        handlers = [f"handlers.{unit}" for unit, count in self._handlers.items() if count]
        symbols = [RUN_INTERPRETER, RUN_TRANSLATOR, HOST_TSC, PAGE_HASH, DECODE_BLOCK]
        symbols += [STOP_MACHINE, RESUME_MACHINE, WRITTEN_OUTSIDE, POST_INTERRUPT, NOTIFY]
        symbols += [RAISE_REASONS, CLEAR_REASONS, RECLAIM_QUEUE, *DOORS.values(), *handlers]
        self.library: Library = linked.link(objects, symbols) or _linked_by_llvm(objects, symbols)
        self.run_interpreter: Entry = self._entry(RUN_INTERPRETER)
        self.run_translator: Entry = self._entry(RUN_TRANSLATOR)
        self.read_host_tsc: Entry = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(
            self.library.address(HOST_TSC)
        )
        self.page_hash: Entry = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(
            self.library.address(PAGE_HASH)
        )
        self.decode_block: Callable[[int, int, int, int, int], int] = ctypes.CFUNCTYPE(
            ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64,
            ctypes.c_uint32, ctypes.c_uint32,
        )(self.library.address(DECODE_BLOCK))  # fmt: skip
        self._stop_machine = self._entry(STOP_MACHINE)
        self._resume_machine = self._entry(RESUME_MACHINE)
        # The quick way keeps the GIL: it does not wait.
        arguments = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64,
                     ctypes.c_uint32)  # fmt: skip
        where = self.library.address(WRITTEN_OUTSIDE)
        self._written_quickly = ctypes.PYFUNCTYPE(*arguments)(where)
        self._written = ctypes.CFUNCTYPE(*arguments)(where)
        # These do not wait either, so they keep the GIL as well.
        self.post: Callable[[int, int, int], None] = ctypes.PYFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32
        )(self.library.address(POST_INTERRUPT))
        self.notify: Callable[[int, int], None] = ctypes.PYFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_uint32
        )(self.library.address(NOTIFY))
        change_reasons = ctypes.PYFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)
        self.raise_reasons: Callable[[int, int], int] = change_reasons(
            self.library.address(RAISE_REASONS)
        )
        self.clear_reasons: Callable[[int, int], int] = change_reasons(
            self.library.address(CLEAR_REASONS)
        )
        where = self.library.address(RECLAIM_QUEUE)
        self._reclaim_quickly = ctypes.PYFUNCTYPE(
            ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32
        )(where)
        self._reclaim = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)(where)
        self._opcodes = ctypes.create_string_buffer(objects.read("opcodes.bin"))
        self._groups = ctypes.create_string_buffer(objects.read("groups.bin"))
        self._forms = self._linked_forms()
        self._leave_out_missing()
        self._parts: dict[str, Any] = {}
        self._memory = ctypes.create_string_buffer(GuestTables.size)
        self.tables = self._read_tables()
        self._mnemonics: list[str] | None = None

    def _entry(self, name: str) -> Entry:
        # CFUNCTYPE releases the GIL for the time of the call.
        return ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(self.library.address(name))

    def _linked_forms(self) -> array[int]:
        """Return the form table with handler addresses in place of indices."""
        addresses = [0]
        for unit in self.objects.units:
            if count := self._handlers[unit]:
                where = self.library.address(f"handlers.{unit}")
                addresses += (ctypes.c_uint64 * count).from_address(where)
        entries = array("Q")
        entries.frombytes(self.objects.read("forms.bin"))
        words = FormEntry.size // 8
        for slot in range(SLOTS):
            entries[slot::words] = array("Q", map(addresses.__getitem__, entries[slot::words]))
        return entries

    def _leave_out_missing(self) -> None:
        """Have no instruction that takes one of the host's which this host has not: it is #UD."""
        needs = json.loads(self.objects.read("needs.json"))
        if not needs:
            return
        from ringzero.host.processor import host_features

        present = host_features()
        words = FormEntry.size // 8
        for form, feature in needs.items():
            if feature not in present:
                start = int(form) * words
                self._forms[start : start + SLOTS] = array("Q", bytes(8 * SLOTS))

    @property
    def mnemonics(self) -> list[str]:
        """Mnemonic of each form, for statistics and messages."""
        if self._mnemonics is None:
            self._mnemonics = json.loads(self.objects.read("names.json"))
        return self._mnemonics

    def connect(self, address: int) -> None:
        """Enter the decoder's tables and the doors in the Cpu struct at a host address."""
        members = {
            "opcode_table": ctypes.addressof(self._opcodes),
            "group_table": ctypes.addressof(self._groups),
            "form_table": self._forms.buffer_info()[0],
            **{member: self.library.address(name) for member, name in DOORS.items()},
        }
        for name, where in members.items():
            ctypes.c_uint64.from_address(address + Cpu.offset_of(name)).value = where

    @contextmanager
    def stopped(self, exclusive: int) -> Iterator[None]:
        """Have the vCPUs of the machine stand still that has an Exclusive at a host address.

        For a thread that runs no guest code, and makes no other call of these meanwhile.
        """
        self._stop_machine(exclusive)
        try:
            yield
        finally:
            self._resume_machine(exclusive)

    def written(self, cpu: int, first: int, count: int) -> None:
        """Drop the code of `count` pages of RAM from number `first` on, which a device wrote to.

        `cpu` is the host address of the struct of one of the machine's vCPUs.
        """
        if not self._written_quickly(cpu, first, count, 0):
            self._written(cpu, first, count, 1)

    def reclaim_queue(self, address: int) -> None:
        """Take the TransmitQueue at a host address back from native code."""
        if not self._reclaim_quickly(address, 0):
            self._reclaim(address, 1)

    def _read_tables(self) -> Any:
        """Load what every translator reads; returns a view of the GuestTables."""
        view = view_of(GuestTables, ctypes.addressof(self._memory))
        for part, files in ((view.common, COMMON_TABLES), (view, GUEST_TABLES)):
            for member, file in files.items():
                # What is not looked at is not read, and other processes have the same pages.
                table, _ = map_file(self.objects.directory / file)
                self._parts[member] = ctypes.c_char.from_buffer(table)
                setattr(part, member, ctypes.addressof(self._parts[member]))
        ctypes.memmove(view.common.exits.address, self.objects.read("exits.bin"), Exits.size)
        ctypes.memmove(view.glue.address, self.objects.read("glue.bin"), Glue.size)
        return view

    def lowering(self, number: int) -> Any:
        """Return a view of a LoweringEntry, by what a decoded block says of an instruction."""
        return view_of(LoweringEntry, self.tables.lowerings + number * LoweringEntry.size)

    def translator(self, address: int, space: int) -> Any:
        """Return a view of a Translator at a host address, which translates into a CodeSpace."""
        view = view_of(Translator, address)
        view.scratch.tables = self.tables.address
        view.scratch.space = space
        return view


def native_engine(guest: str = opened.DEFAULT_GUEST) -> NativeEngine:
    """Return the compiled engine of a guest, compiling it first where it is not cached."""
    return _native_engine(guest)


@functools.cache
def _native_engine(guest: str) -> NativeEngine:
    # However it was asked for: a second one would be another 2 MiB.
    return NativeEngine(opened.prepared(guest=guest))


def _linked_by_llvm(objects: Any, symbols: list[str]) -> Library:
    from ringzero.jit import build

    return build.link(objects, symbols)
