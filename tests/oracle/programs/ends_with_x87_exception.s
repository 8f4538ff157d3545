# An unmasked x87 zero divide is reported at the next waiting instruction.
    fninit
    mov rbx, DATA
    mov word ptr [rbx], 0x037b
    fldcw [rbx]
    fld1
    fldz
    fdiv
    mov eax, 1
    fnop
    mov eax, 2
    int3
