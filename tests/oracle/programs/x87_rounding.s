# FRNDINT, FIST, FISTTP, FSCALE, FXTRACT, FPREM under the four rounding modes.
    mov rdi, DATA
    mov r8d, 4
    mov r9d, 0x037f
mode:
    mov [rdi], r9w
    fldcw [rdi]
    mov ecx, 16
next:
    lea eax, [rcx*2 - 15]
    mov [rdi + 4], eax
    fild dword ptr [rdi + 4]
    mov dword ptr [rdi + 4], 4
    fidiv dword ptr [rdi + 4]
    fld st(0)
    frndint
    fistp word ptr [rdi + 8]
    fist dword ptr [rdi + 12]
    fld st(0)
    fisttp qword ptr [rdi + 16]
    fld1
    fld st(1)
    fscale
    fstp st(1)
    fld st(0)
    fxtract
    fstp qword ptr [rdi + 24]
    fstp qword ptr [rdi + 32]
    fld1
    fadd st, st(0)
    fadd st, st(0)
    fxch
    fprem
    fstp qword ptr [rdi + 40]
    fprem1
    fstp tbyte ptr [rdi + 48]
    fstp st(0)
    movzx eax, word ptr [rdi + 8]
    add r10, rax
    add r10, [rdi + 12]
    xor r10, [rdi + 16]
    add r10, [rdi + 48]
    dec ecx
    jnz next
    add r9d, 0x400
    add rdi, 64
    dec r8d
    jnz mode
    fnclex
    fninit
    int3
