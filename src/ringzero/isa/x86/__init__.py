"""The x86-64 instruction set: x86-64-v2 as Debian's kernels and userlands run it.

cpu.py         the vCPU struct, register numbers, flag and exception names
table.py       the instruction table and the @instruction decorator
operation.py   what a semantic function works on
flags.py       lazy flags
state.py       the architectural state as plain data (save/restore, other engines)
state_io.py    that state to and from the vCPU struct; reset.py: RESET, INIT, SIPI
view.py        native structs seen from Python
mmu.py         page walks, the soft TLB, loads and stores
descriptors.py segment descriptors, segment registers, the mode that follows from them
stack.py       pushes and pops of interrupts and far transfers
exceptions.py  faults, interrupt delivery, double and triple faults
breakpoints.py, debug.py    hardware breakpoints; debug traps and DR0-DR7
interpreter.py fetch, decode, execute, and what happens between instructions
far.py, syscalls.py         far JMP, CALL, RET, IRET, INT n; SYSCALL, SYSENTER
segments.py, system.py, msr.py, rflags.py, portio.py    the other privileged instructions
integer.py, control.py, string.py, bits.py ... the instructions
"""
