# A store loop runs from the data pages into the read-only page.
    mov rdi, DATA + 0x3f00
    mov eax, 1
next:
    mov [rdi], rax
    lea rax, [rax + rax*2]
    add rdi, 8
    jmp next
