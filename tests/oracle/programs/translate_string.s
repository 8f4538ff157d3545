# LODSB, XLAT, STOSB: a table translation and an upper-casing.
    mov rdi, DATA + 0x1000
    xor eax, eax
table:
    mov edx, eax
    not dl
    rol dl, 3
    mov [rdi + rax], dl
    inc al
    jnz table
    mov rbx, rdi
    mov rsi, DATA
    mov rdi, DATA + 0x1800
    mov ecx, 500
next:
    lodsb
    xlatb
    cmp al, 'a'
    jb keep
    cmp al, 'z'
    ja keep
    and al, 0xdf
keep:
    stosb
    loop next
    int3
