"""A second guest ISA, tiny but whole, through the seams that every ISA goes through.

Eight 64-bit registers, instructions of four bytes, no paging, no I/O ports, one
vector for all exceptions and interrupts. `insn` says what instructions do, to the
native language; `architecture` is the ISA as a value; `guest` is its part of the
software engine; `board` a machine of several vCPUs around it; `assembler` and
`model` are for tests.
"""
