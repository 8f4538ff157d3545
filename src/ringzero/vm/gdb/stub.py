"""A machine as gdb's remote target (Debugging with GDB, appendix E).

All-stop: while one vCPU is looked at, none runs. `vCont` with a step makes it on that vCPU alone.
Breakpoints, software or hardware, are the engine's own: guest memory stays as it is. Watchpoints
for writes are told when the memory has changed; those for reads are not offered.
"""

from __future__ import annotations

import binascii
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from ringzero.errors import ConflictError, RingzeroError
from ringzero.isa.contract import DebugRegister
from ringzero.vm.debugger import Debugger
from ringzero.vm.gdb import monitor
from ringzero.vm.gdb.packets import ACK, INTERRUPT, NAK, PACKET_SIZE, Decoder, encode
from ringzero.vm.inspect import Cpu, MemoryAccess

# Signals by gdb's numbers (include/gdb/signals.def).
_SIGINT, _SIGTRAP = 2, 5
_PAGE = 4096
# As much memory as fits in an answer in hexadecimal, in bytes.
_MOST = PACKET_SIZE // 2
_FEATURES = (
    b"PacketSize=%x;qXfer:features:read+;vContSupported+;QStartNoAckMode+;swbreak+;hwbreak+"
    % PACKET_SIZE
)
_OK, _EMPTY = b"OK", b""
# errno values are the host's to choose; gdb shows the number.
_FAULT, _NO_MEMORY, _BAD = b"E01", b"E14", b"E22"
_BREAKPOINTS = {"0": "swbreak", "1": "hwbreak"}
_WRITE_WATCH = "2"
# More than a variable, in bytes: each step looks at all of it.
_MOST_WATCHED = 4096


class Debuggable(Protocol):
    """What a stub needs of a machine."""

    @property
    def debugger(self) -> Debugger[Any]: ...

    @property
    def cpus(self) -> Sequence[Cpu]: ...

    @property
    def memory(self) -> MemoryAccess: ...


class Target(Protocol):
    """The machine, and how whoever keeps it has it stop, go on and end."""

    @property
    def machine(self) -> Debuggable: ...

    def pause(self) -> bool:
        """Stop the machine; return whether it ran."""
        ...

    def resume(self) -> None:
        """Let it go on."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Stub:
    """One debugger's session; `send` takes bytes for gdb, from any thread.

    `feed` gives it what gdb sent, `close` is to be called when gdb has gone: its breakpoints go,
    and the machine goes on if it ran when gdb came. Raises EngineError for an ISA that gdb is not
    told of.
    """

    def __init__(self, target: Target, send: Callable[[bytes], object]) -> None:
        self._target = target
        self.by_physical = False
        self.ended = False
        machine = target.machine
        self._machine = machine
        self._isa = machine.cpus[0].architecture.debug_target()
        self._send = send
        self._decoder = Decoder()
        self._acknowledges = True
        self._last = b""
        self._chosen = 0
        # What of the debugger's breakpoints an address has, as gdb calls them.
        self._breakpoints: dict[int, str] = {}
        # Where what is watched lies in physical memory, by its address and size as gdb has them.
        self._watched: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._states: dict[int, Any] = {}
        self._lock = threading.RLock()
        self._waiter: threading.Thread | None = None
        self._stop_reply = b"T%02xthread:1;" % _SIGTRAP
        self._interrupted = False
        if machine.debugger.taken:
            raise ConflictError(
                "another debugger has the machine", hint="detach it: `detach` or `quit` in gdb"
            )
        machine.debugger.taken = True
        try:
            self._goes_on = target.pause()
        except BaseException:
            machine.debugger.taken = False
            raise

    # ---- the wire ---------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what gdb sent. Raises ProtocolError."""
        for packet in self._decoder.feed(data):
            if self.ended:
                return
            if packet == INTERRUPT:
                if self._waiter is not None:
                    self._interrupted = True
                    self._machine.debugger.interrupt()
            elif packet == NAK:
                self._send(self._last)
            elif packet == b"!":
                if self._acknowledges:
                    self._send(NAK)
            elif packet != ACK:
                if self._acknowledges:
                    self._send(ACK)
                self._take(packet[1:])

    def close(self) -> None:
        """Be rid of the debugger; another one may come then."""
        with self._lock:
            if self.ended:
                return
            waiter = self._waiter
            if waiter is None:
                self._let_go()
                return
            # The machine runs, and goes on.
            self.ended = True
            self._forget()
            self._machine.debugger.dismiss()
        # It would take the next debugger's stop.
        waiter.join()
        self._machine.debugger.leave()

    def _let_go(self) -> None:
        self.ended = True
        self._forget()
        self._machine.debugger.taken = False
        if self._goes_on:
            self._target.resume()

    def _forget(self) -> None:
        for address in self._breakpoints:
            self._machine.debugger.clear(address)
        self._breakpoints.clear()
        for where in tuple(self._watched):
            self._unwatch(where)

    def _say(self, data: bytes) -> None:
        self._last = encode(data)
        self._send(self._last)

    def _take(self, packet: bytes) -> None:
        """Do what one packet asks for, and answer."""
        with self._lock:
            if self._waiter is not None:
                # gdb asks nothing while the target runs, but for its stop.
                return
            text = packet.decode("latin-1")
            try:
                answer = self._answer(text)
            except (ValueError, KeyError, IndexError):
                answer = _BAD
            except RingzeroError as fault:
                answer = b"E." + fault.message.encode("ascii", "replace")
            if answer is not None:
                self._say(answer)

    def _answer(self, text: str) -> bytes | None:
        """Return the answer to a packet, or None where that comes later."""
        kind, rest = text[:1], text[1:]
        handler = {
            "?": lambda _: self._stop_reply,
            "g": lambda _: self._all_registers(),
            "G": self._write_all,
            "p": self._register,
            "P": self._write_register,
            "m": self._read,
            "M": self._write,
            "X": self._write_binary,
            "H": self._choose,
            "T": lambda number: _OK if self._index(number) is not None else _FAULT,
            "Z": lambda rest: self._breakpoint(rest, True),
            "z": lambda rest: self._breakpoint(rest, False),
            "c": lambda _: self._go(None, False),
            "s": lambda _: self._go(self._chosen, True),
            "D": lambda _: self._detach(),
            "k": lambda _: self.kill(),
            "v": self._verbose,
            "q": self._query,
            "Q": self._set,
        }.get(kind)
        return _EMPTY if handler is None else handler(rest)

    # ---- registers and memory ---------------------------------------------

    def _state(self, index: int) -> Any:
        if index not in self._states:
            self._states[index] = self._machine.cpus[index].state
        return self._states[index]

    def _change(self, change: Callable[[Any], Any]) -> bytes:
        """Change the chosen vCPU's state as it is by now: somebody else may have had it run."""
        cpu = self._machine.cpus[self._chosen]
        self._states.pop(self._chosen, None)
        with cpu.frozen():
            cpu.state = change(cpu.state)
        return _OK

    def registers(self) -> Iterator[tuple[DebugRegister, int]]:
        """Yield the registers of the chosen vCPU."""
        state = self._state(self._chosen)
        for register in self._isa.registers(state):
            yield register, self._isa.read(state, register.name)

    def places(self) -> Iterator[tuple[int, int]]:
        """Yield each vCPU's number and the address of its next instruction."""
        for index in range(len(self._machine.cpus)):
            yield index, self._isa.where(self._state(index))

    def _all_registers(self) -> bytes:
        return b"".join(_hex(value, register.bits) for register, value in self.registers())

    def _register(self, rest: str) -> bytes:
        register = self._isa.registers(self._state(self._chosen))[_natural(rest)]
        return _hex(self._isa.read(self._state(self._chosen), register.name), register.bits)

    def _write_register(self, rest: str) -> bytes:
        number, _, value = rest.partition("=")
        register = self._isa.registers(self._state(self._chosen))[_natural(number)]
        wanted = _value(value, register.bits)
        return self._change(lambda state: self._isa.write(state, register.name, wanted))

    def _write_all(self, rest: str) -> bytes:
        def write(state: Any) -> Any:
            at = 0
            for register in self._isa.registers(state):
                part = rest[at : at + register.bits // 4]
                at += register.bits // 4
                state = self._isa.write(state, register.name, _value(part, register.bits))
            return state

        return self._change(write)

    def physical(self, address: int) -> int | None:
        """Return where an address of the chosen vCPU's leads."""
        if self.by_physical:
            return address
        memory = self._machine.memory.guest
        return self._isa.physical(self._state(self._chosen), memory, address)

    def _pieces(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges of physical memory, as far as there is any, as (start, size)."""
        memory = self._machine.memory.guest
        while size:
            step = min(size, _PAGE - address % _PAGE)
            start = self.physical(address)
            if start is None or not memory.is_ram(start, step):
                return
            yield start, step
            address, size = address + step & (1 << 64) - 1, size - step

    def _read(self, rest: str) -> bytes:
        address, size = (int(part, 16) for part in rest.split(","))
        found = b"".join(
            self._machine.memory[start : start + step]
            for start, step in self._pieces(address, min(size, _MOST))
        )
        return binascii.hexlify(found) if found or not size else _NO_MEMORY

    def _write(self, rest: str) -> bytes:
        where, _, data = rest.partition(":")
        return self._store(where, binascii.unhexlify(data))

    def _write_binary(self, rest: str) -> bytes:
        where, _, data = rest.partition(":")
        return self._store(where, data.encode("latin-1"))

    def _store(self, where: str, data: bytes) -> bytes:
        address, size = (int(part, 16) for part in where.split(","))
        if size != len(data):
            return _BAD
        pieces = list(self._pieces(address, size))
        if sum(step for _, step in pieces) != size:
            return _NO_MEMORY
        at = 0
        for start, step in pieces:
            self._machine.memory[start : start + step] = data[at : at + step]
            at += step
        return _OK

    # ---- threads ----------------------------------------------------------

    def _index(self, text: str) -> int | None:
        """Return the vCPU of a thread's number, in hexadecimal; None where there is none."""
        number = int(text, 16)
        return number - 1 if 1 <= number <= len(self._machine.cpus) else None

    def _choose(self, rest: str) -> bytes:
        number = rest[1:]
        if number in ("0", "-1"):
            return _OK
        index = self._index(number)
        if index is None:
            return _FAULT
        if rest[0] == "g":
            self._chosen = index
        return _OK

    # ---- going on ---------------------------------------------------------

    def _breakpoint(self, rest: str, there: bool) -> bytes:
        kind, address, size = rest.split(",")[:3]
        if kind == _WRITE_WATCH:
            return self._watchpoint((int(address, 16), int(size.split(";")[0], 16)), there)
        if kind not in _BREAKPOINTS:
            return _EMPTY
        where = int(address, 16)
        debugger = self._machine.debugger
        if there and where not in self._breakpoints:
            debugger.break_at(where)
            self._breakpoints[where] = _BREAKPOINTS[kind]
        elif not there and self._breakpoints.pop(where, None) is not None:
            debugger.clear(where)
        return _OK

    def _watchpoint(self, where: tuple[int, int], there: bool) -> bytes:
        if not there:
            self._unwatch(where)
            return _OK
        if not 0 < where[1] <= _MOST_WATCHED:
            return _BAD
        pieces = list(self._pieces(*where))
        if sum(size for _, size in pieces) != where[1]:
            return _NO_MEMORY
        for piece in pieces:
            self._machine.debugger.watch(*piece)
        self._watched[where] = pieces
        return _OK

    def _unwatch(self, where: tuple[int, int]) -> None:
        for piece in self._watched.pop(where, ()):
            if all(piece not in others for others in self._watched.values()):
                self._machine.debugger.unwatch(*piece)

    def _reason(self, address: int) -> str:
        """Return why a vCPU stopped at `address`, in gdb's words; "" for a step."""
        changed = self._machine.debugger.changed
        for (start, _), pieces in self._watched.items():
            if changed in pieces:
                return f"watch:{start:x};"
        kind = self._breakpoints.get(address)
        return f"{kind}:;" if kind is not None else ""

    def _go(self, only: int | None, steps: bool) -> None:
        if only is not None:
            self._machine.debugger.choose(only, steps=steps)
        self._states.clear()
        self._interrupted = False
        # Another vCPU may have come to a breakpoint while the first one's stop was told.
        if only is not None or not self._machine.debugger.pending():
            self._target.resume()
        self._waiter = threading.Thread(target=self._await_stop, name="gdb", daemon=True)
        self._waiter.start()

    def _await_stop(self) -> None:
        """Tell gdb of the next stop, or of the end."""
        stop = self._machine.debugger.wait()
        # Of one who has gone meanwhile `close` hears.
        with self._lock, contextlib.suppress(OSError):
            self._waiter = None
            if stop is None:
                if not self.ended:
                    self.ended = True
                    self._say(b"W00")
                return
            self._target.pause()
            if self.ended:
                self._target.resume()
                return
            cpu, address = stop
            self._chosen = cpu.index
            reason = self._reason(address)
            self._stop_reply = b"T%02xthread:%x;%s" % (
                _SIGINT if self._interrupted and not reason else _SIGTRAP,
                cpu.index + 1,
                reason.encode(),
            )
            self._say(self._stop_reply)

    def _verbose(self, rest: str) -> bytes | None:
        if rest == "Cont?":
            return b"vCont;c;C;s;S"
        if rest.startswith("Cont;"):
            return self._continue(rest.removeprefix("Cont;").split(";"))
        if rest.startswith("Kill"):
            self.kill()
            return _OK
        return _EMPTY

    def _continue(self, actions: Sequence[str]) -> bytes | None:
        """Do `vCont`: the first action that fits a thread is its own."""
        cpus = range(len(self._machine.cpus))
        wanted: dict[int, str] = {}
        for action in actions:
            word, _, thread = action.partition(":")
            index = None if thread in ("", "-1") else self._index(thread)
            if word[:1] not in ("c", "C", "s", "S") or (thread not in ("", "-1") and index is None):
                return _BAD
            for cpu in cpus if index is None else (index,):
                wanted.setdefault(cpu, word[0].lower())
        stepping = [cpu for cpu, word in wanted.items() if word == "s"]
        if stepping:
            self._go(stepping[0], True)
        elif len(wanted) == 1 and len(cpus) > 1:
            self._go(next(iter(wanted)), False)
        else:
            self._go(None, False)
        return None

    def _detach(self) -> bytes:
        # Whatever it did before, a target that gdb lets go runs.
        self._goes_on = True
        self._let_go()
        return _OK

    def kill(self) -> None:
        """End the machine, and the session."""
        self.ended = True
        self._machine.debugger.taken = False
        self._target.kill()

    # ---- questions --------------------------------------------------------

    def _query(self, rest: str) -> bytes:
        name, _, words = rest.partition(":")
        if name == "Supported":
            return _FEATURES
        if name == "Xfer" and words.startswith("features:read:target.xml:"):
            return self._description(words.rpartition(":")[2])
        if name == "C":
            return b"QC%x" % (self._chosen + 1)
        if name == "Attached" or name.startswith("Attached"):
            return b"1"
        if name == "fThreadInfo":
            return b"m" + b",".join(b"%x" % (n + 1) for n in range(len(self._machine.cpus)))
        if name == "sThreadInfo":
            return b"l"
        if name.startswith("ThreadExtraInfo,"):
            index = self._index(name.partition(",")[2])
            return _FAULT if index is None else binascii.hexlify(f"vCPU {index}".encode())
        if name == "Symbol":
            return _OK
        if name.startswith("Rcmd,"):
            return self._command(binascii.unhexlify(name.partition(",")[2]))
        return _EMPTY

    def _description(self, where: str) -> bytes:
        start, size = (int(part, 16) for part in where.split(","))
        text = self._isa.describe(self._state(0)).encode()
        part = text[start : start + min(size, _MOST)]
        return (b"m" if start + len(part) < len(text) else b"l") + part

    def _command(self, line: bytes) -> bytes:
        try:
            said = monitor.answer(self, line.decode("utf-8", "replace"))
        except RingzeroError as fault:
            said = f"{fault.message}\n"
        for at in range(0, len(said), _MOST - 1):
            self._say(b"O" + binascii.hexlify(said[at : at + _MOST - 1].encode()))
        return _OK

    def _set(self, rest: str) -> bytes:
        if rest == "StartNoAckMode":
            self._acknowledges = False
            return _OK
        return _EMPTY


def _natural(text: str) -> int:
    number = int(text, 16)
    if number < 0:
        raise ValueError(text)
    return number


def _hex(value: int, bits: int) -> bytes:
    return binascii.hexlify(value.to_bytes(bits // 8, "little"))


def _value(text: str, bits: int) -> int:
    data = binascii.unhexlify(text)
    if len(data) != bits // 8:
        raise ValueError(text)
    return int.from_bytes(data, "little")
