# 1024-bit additions and subtractions through ADC and SBB chains.
    mov r8d, 20
again:
    mov rsi, DATA
    mov rdi, DATA + 0x400
    mov ecx, 16
    clc
add_loop:
    mov rax, [rsi]
    adc [rdi], rax
    lea rsi, [rsi + 8]
    lea rdi, [rdi + 8]
    dec ecx
    jnz add_loop
    setc r9b
    mov rsi, DATA + 0x80
    mov rdi, DATA + 0x410
    mov ecx, 14
    stc
subtract_loop:
    mov rax, [rsi]
    sbb [rdi], rax
    lea rsi, [rsi + 8]
    lea rdi, [rdi + 8]
    loop subtract_loop
    sbb r10, r10
    dec r8d
    jnz again
    int3
