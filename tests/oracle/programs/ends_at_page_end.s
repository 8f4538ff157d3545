# Execution runs off the last code page.
    lea rax, [rip + here]
    add rax, 0x1ffe
    mov word ptr [rax], 0x9090
    jmp rax
