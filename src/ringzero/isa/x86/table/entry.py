"""A form as native code has it: where its handlers are, how its immediates are read."""

from __future__ import annotations

from ringzero.native import Struct, field, u8, u32, u64

# FormEntry.flags
HAS_MODRM, DEFAULT_64, FORCE_64, IGNORE_66, OPCODE_REGISTER, ENDS, USES_VVVV, VSIB, WIDE_ONLY = (
    1 << n for n in range(9)
)
# Handler slots of a form: by operand size (16, 32, 64), memory, lock.
SLOTS = 12


class FormEntry(Struct):
    """What the decoder knows of a form."""

    handlers = field(u64, SLOTS)
    flags = field(u32)
    imm1 = field(u8)
    imm2 = field(u8)
