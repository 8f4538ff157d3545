"""The compiled engine in this process: its entry points and the decoder's tables."""

from __future__ import annotations

import ctypes
import functools
import json
from array import array
from collections.abc import Callable

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.decoder import SLOTS, FormEntry
from ringzero.jit import build

Entry = Callable[[int], int]
# Functions that Python calls.
ENTRIES = ("run_interpreter", "interpreter.host_tsc")


class NativeEngine:
    """Loaded once per process; every vCPU uses the same code and tables."""

    def __init__(self, objects: build.EngineObjects) -> None:
        self.objects = objects
        self._places = {
            name: json.loads(objects.read(f"{name}.places")) for name in objects.units
        }
        tables = [f"handlers.{name}" for name, places in self._places.items() if places]
        self.library = build.link(objects, [*ENTRIES, *tables])
        self.run_interpreter: Entry = self._entry("run_interpreter")
        self.read_host_tsc: Entry = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(
            self.library.address("interpreter.host_tsc")
        )
        self._opcodes = ctypes.create_string_buffer(objects.read("opcodes.bin"))
        self._groups = ctypes.create_string_buffer(objects.read("groups.bin"))
        self._forms = self._linked_forms()
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
        """Enter the decoder's tables in the Cpu struct at a host address."""
        for name, where in (
            ("opcode_table", ctypes.addressof(self._opcodes)),
            ("group_table", ctypes.addressof(self._groups)),
            ("form_table", self._forms.buffer_info()[0]),
        ):
            ctypes.c_uint64.from_address(address + Cpu.offset_of(name)).value = where


@functools.cache
def native_engine(progress: build.Progress | None = None) -> NativeEngine:
    """Return the compiled engine, compiling it first where it is not cached."""
    return NativeEngine(build.ensure(progress))
