"""What an instruction's semantic function is given: its operands, flags and memory.

Semantic functions are staged (see `ringzero.native`): `m` is a
generation-time object and everything it returns is a native value, so one
function serves the interpreter's handlers and the translator's stencils. The
methods here are the whole interface; `ringzero.jit` implements it.

Order inside a semantic function, so that a fault leaves the state precise:
first everything that can fault on reading, then memory writes, then registers
and flags. A memory write that faults never returns.
"""

from __future__ import annotations

from typing import Any, Protocol


class Operation(Protocol):
    """One instruction being generated.

    `size` is the operand size in bits (16, 32, 64); for a byte form (Eb ...)
    it is 8. `T` is the unsigned type of that size, `S` the signed one.
    """

    size: int
    T: Any
    S: Any
    mnemonic: str
    # Generation-time facts about this variant of the form.
    memory: bool  # ModRM names memory
    # True in handlers; False in stencils, which run only while no SSE exception is unmasked.
    checked: bool
    # Whether it is a part of an instruction which looks at SSE exceptions as a whole.
    nested: bool
    mode64: bool | None  # True or False in stencils, None in handlers: ask `long_mode()`

    @property
    def cpu(self) -> Any:
        """The vCPU: a pointer to `Cpu`."""

    @property
    def insn(self) -> Any:
        """The decoded instruction: a pointer to `Insn` (handlers only)."""

    # --- operands ---

    def read(self, n: int) -> Any:
        """Return operand `n` in its own width (immediates in the operation's width `T`)."""

    def write(self, n: int, value: Any) -> None:
        """Store operand `n`; a 32-bit GPR is zero-extended to 64, XMM upper bits stay."""

    def read_half(self, n: int, half: int, aligned: bool = False) -> Any:
        """Return half 0 or 1 of operand `n`, a vector register or 256 bits in memory, as a v128.

        Memory is read whole by the first of them; `aligned` as for `load`.
        """

    def write_halves(self, n: int, low: Any, high: Any, aligned: bool = False) -> None:
        """Store both halves (v128) of a vector register, or of operand `n` of 256 bits in memory.

        Instructions with a VEX prefix clear the upper half of a register that they set
        128 bits of (SDM vol. 1, 14.1.3).
        """

    def address(self, n: int, size: int = 1, alignment: int = 1) -> Any:
        """Return the linear address (u64, segment base added) of memory operand `n`.

        Its first `size` bytes are checked against the segment, or to be canonical (0: neither).
        `alignment` is the power of two whose violation the caller will report.
        """

    def effective_address(self, n: int) -> Any:
        """Return the address of memory operand `n` without the segment base (u64)."""

    def shift_count(self, n: int) -> Any:
        """Return operand `n` as a shift count (u64): masked to 5 bits, 6 for 64-bit operands."""

    def is_nonzero(self, count: Any) -> Any:
        """Return whether a shift count is not 0; known at generation time for some stencils."""

    def is_memory(self, n: int) -> bool:
        """Return (at generation time) whether operand `n` is memory in this variant."""

    def is_register(self, n: int, register: int) -> Any:
        """Return whether operand `n`, named by the opcode, is GPR `register` (RAX ...)."""

    def register_number(self, n: int) -> Any:
        """Return the number of the register that is operand `n` (u64)."""

    def get(self, register: int, kind: Any = None) -> Any:
        """Return GPR `register` (a constant like RAX), truncated to `kind` (default `T`)."""

    def set(self, register: int, value: Any) -> None:
        """Set a GPR with the rules of `value`'s width (8/16: insert, 32: zero-extend)."""

    # --- guest memory, by linear address ---

    def load(self, kind: Any, address: Any, aligned: bool = False) -> Any:
        """Load a `kind` (u8..u64, v128) with the current privilege; may fault.

        With `aligned`, an address that is no multiple of the size is #GP(0).
        """

    def store(self, kind: Any, address: Any, value: Any, aligned: bool = False) -> None:
        """Store a `kind`; may fault, as `load` does."""

    def displace(self, amount: Any) -> None:
        """Add `amount` bytes (u64) to the address of the memory operand."""

    def string_address(self, register: int, offset: Any) -> Any:
        """Linear address of `register` + `offset`, with segment and address size applied."""

    def exchange_pair(self, kind: Any, expected: Any, desired: Any) -> Any:
        """Compare-and-exchange the memory operand as a `kind` (u64, u128); return the old one."""

    # --- flags ---

    def set_flags(self, kind: int, dst: Any, src: Any = 0, aux: Any = 0) -> None:
        """Set all arithmetic flags lazily: one of the kinds of flags.py; values of one width."""

    def set_status(self, value: Any, mask: int) -> None:
        """Set the arithmetic flags in `mask` from the bits of `value` (u64); others stay."""

    def get_status(self) -> Any:
        """Return OF, SF, ZF, AF, PF, CF at their RFLAGS positions (u64)."""

    def flag(self, mask: int) -> Any:
        """Return one arithmetic flag (CF, ZF ...) as a boolean."""

    def condition(self, code: int) -> Any:
        """Return the condition `code` of Jcc/SETcc/CMOVcc (0-15, SDM vol. 1, appendix B)."""

    # --- control ---

    @property
    def next_rip(self) -> Any:
        """Address of the next instruction (u64)."""

    def jump(self, target: Any) -> None:
        """Continue at `target` (u64) instead."""

    def check_target(self, target: Any) -> None:
        """Raise #GP(0) when a branch target (u64) is not canonical or beyond CS.

        In translated code the run loop finds that out and takes the branch again
        (`retake_branch`): so nothing but registers may change between here and `jump`.
        """

    def check_call_target(self, target: Any) -> None:
        """Raise the same, here and now: for branches that write memory."""

    def branch(self, condition: Any, target: Any) -> None:
        """Jump when the boolean `condition` holds."""

    def fault(self, vector: int, code: Any = None) -> None:
        """Raise a fault with RIP of this instruction; does not return."""

    def defer(self) -> None:
        """Leave the instruction to its handler, from its start; in stencils only."""

    def long_mode(self) -> Any:
        """Return whether code runs in 64-bit mode (a bool or a boolean value)."""

    def stop_block(self) -> None:
        """Leave translated code after this instruction: mode, paging or privilege changed."""
