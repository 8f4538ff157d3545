"""The compiled engine in this process: its entry points and its tables."""

from __future__ import annotations

import ctypes
import functools
import json
from array import array
from collections.abc import Callable
from typing import Any

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.table.decoder import SLOTS, FormEntry
from ringzero.isa.x86.view import StructView
from ringzero.jit import build
from ringzero.jit.tables import Glue, LoweringEntry, Translator

Entry = Callable[[int], int]
# Functions that Python calls, and the doors by the member of Cpu that holds their address.
RUN_INTERPRETER, RUN_TRANSLATOR = "run_interpreter", "run_translator"
HOST_TSC = "interpreter.host_tsc"
PAGE_HASH = "runtime.page_hash"
DECODE_BLOCK = "translate.decode_block"
DOORS = {
    "enter_code": "x_enter",
    "exit_code": "x_exit",
    "slow_code": "x_slow",
    "generic_code": "x_generic",
    "status_code": "flags.materialize_status",
}
# Tables of the translator: member of Translator, file.
TABLES = {
    "stencils": "stencils.bin",
    "holes_table": "holes.bin",
    "blob": "blob.bin",
    "keys": "keys.bin",
    "lowerings": "lowerings.bin",
    "lowering_index": "lowering_index.bin",
}


class NativeEngine:
    """Loaded once per process; every vCPU uses the same code and tables."""

    def __init__(self, objects: build.EngineObjects) -> None:
        self.objects = objects
        self._places = {name: json.loads(objects.read(f"{name}.places")) for name in objects.units}
        handlers = [f"handlers.{name}" for name, places in self._places.items() if places]
        symbols = [RUN_INTERPRETER, RUN_TRANSLATOR, HOST_TSC, PAGE_HASH, DECODE_BLOCK]
        symbols += [*DOORS.values(), *handlers]
        self.library = build.link(objects, symbols)
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
        self._opcodes = ctypes.create_string_buffer(objects.read("opcodes.bin"))
        self._groups = ctypes.create_string_buffer(objects.read("groups.bin"))
        self._forms = self._linked_forms()
        self._tables = {
            member: ctypes.create_string_buffer(objects.read(file))
            for member, file in TABLES.items()
        }
        self._glue = objects.read("glue.bin")
        self._mnemonics: list[str] | None = None

    def _entry(self, name: str) -> Entry:
        # CFUNCTYPE releases the GIL for the time of the call.
        return ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p)(self.library.address(name))

    def _linked_forms(self) -> array[int]:
        """Return the form table with handler addresses in place of indices."""
        addresses = [0]
        for name, places in self._places.items():
            if places:
                where = self.library.address(f"handlers.{name}")
                addresses += (ctypes.c_uint64 * len(places)).from_address(where)
        entries = array("Q")
        entries.frombytes(self.objects.read("forms.bin"))
        words = FormEntry.size // 8
        for start in range(0, len(entries), words):
            for slot in range(start, start + SLOTS):
                entries[slot] = addresses[entries[slot]]
        return entries

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

    def lowering(self, number: int) -> Any:
        """Return a view of a LoweringEntry, by what a decoded block says of an instruction."""
        where = ctypes.addressof(self._tables["lowerings"]) + number * LoweringEntry.size
        return StructView(LoweringEntry, where)

    def connect_translator(self, view: Any) -> None:
        """Enter the translator's tables in a Translator struct, seen through a view."""
        for member, buffer in self._tables.items():
            setattr(view, member, ctypes.addressof(buffer))
        ctypes.memmove(view.address + Translator.offset_of("glue"), self._glue, Glue.size)


@functools.cache
def native_engine(progress: build.Progress | None = None) -> NativeEngine:
    """Return the compiled engine, compiling it first where it is not cached."""
    return NativeEngine(build.ensure(progress))
