# POPF sets TF: the trap comes after the next instruction.
    xor eax, eax
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    inc eax
    inc eax
    int3
