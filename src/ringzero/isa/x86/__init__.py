"""The x86-64 instruction set: x86-64-v2 as Debian's kernels and userlands run it.

    cpu.py         the vCPU struct, register numbers, flag and exception names
    table.py       the instruction table and the @instruction decorator
    operation.py   what a semantic function works on
    flags.py       lazy flags
    state.py       the architectural state as plain data (save/restore, other engines)
    mmu.py         page walks, the soft TLB, loads and stores
    exceptions.py  faults, interrupt delivery, descriptor loads
    integer.py, control.py, string.py, bits.py ... the instructions
"""
