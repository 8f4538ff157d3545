# Flags carried through many instructions that keep or change some of them.
    xor r8d, r8d
    mov ecx, 200
    mov eax, 0x7fffff00
next:
    add eax, 0x0101
    lahf
    movzx edx, ah
    xor r8d, edx
    rol r8d, 1
    seto dl
    add r8b, dl
    inc eax
    pushfq
    pop rdx
    and edx, 0xcd5
    xor r8, rdx
    stc
    dec eax
    adc r8, 0
    cmc
    sbb r8, 5
    neg eax
    cmovc r9d, eax
    cmovs r10d, ecx
    sub al, cl
    setp r11b
    add r8b, r11b
    cmp ax, cx
    setg dl
    setle dh
    movzx edx, dx
    add r8, rdx
    mov ah, dl
    sahf
    adc r8, 1
    test eax, ecx
    setns dl
    xor r8b, dl
    dec ecx
    jnz next
    int3
