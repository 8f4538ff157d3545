# POPF with DF, NT and ID; PUSHF shows them; DF obeyed by LODS.
    mov rsi, DATA + 0x80
    pushfq
    or qword ptr [rsp], 0x204400
    popfq
    lodsq
    mov rbx, rax
    lodsb
    pushfq
    pop rdx
    cld
    lodsw
    push 0x2
    popfq
    pushfq
    pop r8
    pushf
    pop r9w
    int3
