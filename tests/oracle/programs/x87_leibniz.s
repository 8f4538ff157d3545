# Pi by the Leibniz series, 300 terms, at each precision setting.
    mov rdi, DATA
    mov word ptr [rdi], 0x007f
precision:
    fldcw [rdi]
    fldz
    fld1
    fld1
    mov ecx, 300
term:
    fld st(1)
    fdiv st, st(1)
    faddp st(3), st
    fxch
    fchs
    fxch
    fld1
    faddp st(1), st
    fld1
    faddp st(1), st
    dec ecx
    jnz term
    fstp st(0)
    fstp st(0)
    fadd st, st(0)
    fadd st, st(0)
    fstp tbyte ptr [rdi + 16]
    fldpi
    fld tbyte ptr [rdi + 16]
    fsubp st(1), st
    fstp qword ptr [rdi + 32]
    add rdi, 64
    mov ax, [rdi - 64]
    add ax, 0x200
    mov [rdi], ax
    test ah, 4
    jz precision
    fninit
    cmp eax, edx
    int3
