# mode: 32
# INTO after an overflow.
    mov eax, 0x7ffffff0
next:
    add eax, 3
    into
    jmp next
