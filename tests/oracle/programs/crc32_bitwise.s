# CRC-32 of 512 bytes bit by bit, beside the CRC32 instruction's polynomial.
    mov rsi, DATA
    mov ecx, 512
    mov eax, -1
    mov edx, -1
byte_loop:
    movzx ebx, byte ptr [rsi]
    xor eax, ebx
    crc32 edx, bl
    mov r8d, 8
bit_loop:
    shr eax, 1
    jnc even
    xor eax, 0x82F63B78
even:
    dec r8d
    jnz bit_loop
    inc rsi
    dec ecx
    jnz byte_loop
    cmp eax, edx
    sete bl
    mov rsi, DATA
    mov r9d, -1
    crc32 r9, qword ptr [rsi]
    crc32 r9d, dword ptr [rsi + 8]
    crc32 r9d, word ptr [rsi + 12]
    int3
