# Longest Collatz chain below 500: data-dependent branches.
    mov r8d, 1
    xor r9d, r9d
    xor r10d, r10d
outer:
    mov rax, r8
    xor ecx, ecx
step:
    cmp rax, 1
    je done
    inc ecx
    shr rax, 1
    jnc step
    adc rax, rax
    lea rax, [rax + rax*2 + 1]
    jmp step
done:
    cmp ecx, r9d
    cmova r9d, ecx
    cmova r10d, r8d
    inc r8d
    cmp r8d, 500
    jb outer
    int3
