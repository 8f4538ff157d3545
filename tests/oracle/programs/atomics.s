# LOCK: XADD, CMPXCHG in a loop, CMPXCHG8B and 16B, XCHG, bit tests, arithmetic.
    mov rbx, DATA
    and qword ptr [rbx], 0
    mov ecx, 100
next:
    mov eax, ecx
    lock xadd [rbx], eax
    mov eax, [rbx + 8]
retry:
    mov edx, eax
    add edx, ecx
    lock cmpxchg [rbx + 8], edx
    jnz retry
    lock add qword ptr [rbx + 16], 5
    lock inc dword ptr [rbx + 24]
    lock dec byte ptr [rbx + 28]
    lock neg word ptr [rbx + 30]
    lock not qword ptr [rbx + 32]
    lock xor dword ptr [rbx + 40], ecx
    lock or dword ptr [rbx + 44], 0x10
    lock and dword ptr [rbx + 48], 0xfffffff7
    lock bts dword ptr [rbx + 52], 3
    adc r8, 0
    lock btr dword ptr [rbx + 52], 9
    adc r8, r8
    lock btc qword ptr [rbx + 56], rcx
    adc r8, 0
    xchg [rbx + 64], rcx
    xchg [rbx + 64], rcx
    lock sbb dword ptr [rbx + 72], 1
    lock adc dword ptr [rbx + 76], ecx
    dec ecx
    jnz next
    mov rsi, rcx
    mov rax, [rbx + 0x80]
    mov rdx, [rbx + 0x88]
    mov rbx, 111
    mov rcx, 222
    mov rdi, DATA
    lock cmpxchg16b [rdi + 0x80]
    setz r9b
    lock cmpxchg16b [rdi + 0x80]
    setz r10b
    lock cmpxchg8b [rdi + 0x90]
    setz r11b
    lock cmpxchg8b [rdi + 0x90]
    int3
