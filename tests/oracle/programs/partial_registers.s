# AL, AH, AX, EAX and RAX written and read in turn; SPL and R8B with REX.
    movabs rax, 0x1122334455667788
    movabs rbx, 0x99aabbccddeeff00
    mov ecx, 50
next:
    add al, bh
    adc ah, bl
    xchg al, ah
    add ax, bx
    mov dl, ah
    mov dh, al
    xor ebx, edx
    mov sil, al
    mov dil, sil
    add r8b, dil
    rol r8w, 3
    add r9w, r8w
    movzx r10d, r9w
    add r10, rax
    movsx r11, r8b
    sub rbx, r11
    mov bpl, bl
    xadd al, bh
    cmpxchg bl, cl
    neg ch
    not ch
    mov ch, 0
    cbw
    cwde
    cdqe
    xor rax, r10
    dec ecx
    jnz next
    int3
