# Code written to the second code page, called, rewritten, called again.
    lea rdi, [rip + here]
    add rdi, 0x1000
    mov r12, rdi
    mov r13d, 25
    xor eax, eax
round:
    mov rdi, r12
    lea rsi, [rip + template]
    lea rcx, [rip + template_end]
    sub rcx, rsi
    rep movsb
    mov byte ptr [r12 + 1], r13b
    mov edx, r13d
    and edx, 1
    lea edx, [rdx*8 + 0x04]
    mov byte ptr [r12], dl
    call r12
    add byte ptr [r12 + 3], 8
    call r12
    dec r13d
    jnz round
    int3
template:
    add al, 1
    rol eax, 3
    ret
template_end:
