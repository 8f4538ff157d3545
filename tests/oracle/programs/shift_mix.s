# Every shift and rotate by CL, by 1 and by a constant; defined flags only.
    movabs rax, 0x0123456789abcdef
    mov rbx, DATA
    mov r8d, 70
    xor r9d, r9d
next:
    mov ecx, r8d
    rol rax, cl
    adc r9, 0
    ror eax, cl
    adc r9, r9
    mov rdx, rax
    shl rdx, cl
    xor rax, rdx
    mov rdx, rax
    shr rdx, cl
    add rax, rdx
    mov rdx, rax
    sar rdx, cl
    xor rax, rdx
    rcl rax, 1
    rcr rdx, 1
    adc r9, 0
    clc
    rcl rax, cl
    rcr edx, cl
    shld rax, rdx, cl
    shrd rdx, rax, 13
    rol word ptr [rbx], cl
    ror byte ptr [rbx + 3], cl
    sar dword ptr [rbx + 8], cl
    shl qword ptr [rbx + 16], 3
    rcr byte ptr [rbx + 24], 1
    rcl word ptr [rbx + 26], 1
    xor r9, rax
    add r9, rdx
    dec r8d
    jnz next
    int3
