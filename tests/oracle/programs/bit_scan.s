# BSF, BSR, POPCNT, BT and its kin, BSWAP over 100 numbers.
    mov rsi, DATA
    mov ecx, 100
    xor r8d, r8d
    xor r9d, r9d
    xor r10d, r10d
next:
    mov rax, [rsi]
    or rax, 0x40
    bsf rdx, rax
    add r8, rdx
    bsr edx, eax
    add r8, rdx
    popcnt rdx, rax
    add r9, rdx
    bt rax, rdx
    adc r10, 0
    bts eax, 5
    adc r10, r10
    btr rax, 63
    adc r10, 0
    btc eax, ecx
    rcl r10, 1
    bswap rax
    xor r9, rax
    bswap eax
    add r9, rax
    bt [rsi], edx
    adc r10, 0
    bts dword ptr [rsi + 4], 3
    adc r10, 0
    add rsi, 8
    dec ecx
    jnz next
    popcnt cx, r9w
    int3
