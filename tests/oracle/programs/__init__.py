"""Small deterministic programs for lockstep tests.

Each `.s` file beside this module is one program: Intel syntax for LLVM's
assembler, a comment that says what it exercises, `# mode: 32` for compatibility
mode. It starts at `CODE_BASE` with all registers zero but the stack pointer and
ends with the exception that its last line causes: INT3, or the fault named.
`DATA` is `DATA_BASE`; `label - here + ORIGIN` is a label's address.

What a program should leave behind is what the host CPU leaves behind:
`Native().run([program.case])`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from tests.oracle.assembler import assemble
from tests.oracle.model import CODE_BASE, CODE_SIZE, DATA_BASE, DATA_SIZE, Case, State

STACK_TOP = DATA_BASE + DATA_SIZE - 0x100
"""Where RSP points at the start; programs keep their data below the stack."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program, ready to run as a `Case` (without a mnemonic: nothing is undefined)."""

    name: str
    description: str
    case: Case


@functools.cache
def load_programs() -> tuple[Program, ...]:
    """All programs in the order of their names."""
    return tuple(_load(path) for path in sorted(Path(__file__).parent.glob("*.s")))


def _load(path: Path) -> Program:
    source = path.read_text()
    comments = [line[1:].strip() for line in source.splitlines() if line.startswith("#")]
    mode = 32 if "mode: 32" in comments else 64
    code = assemble(f".set DATA, {DATA_BASE:#x}\n{source}", mode, CODE_BASE)
    if len(code) > CODE_SIZE:
        raise ValueError(f"{path.name}: {len(code)} bytes do not fit the code window")
    state = State.build({"rsp": STACK_TOP}, rip=CODE_BASE)
    description = " ".join(line for line in comments if not line.startswith("mode:"))
    return Program(path.stem, description, Case(code, state, mode=mode))
