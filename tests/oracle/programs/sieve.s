# Primes below 4096 with byte flags.
    mov rdi, DATA
    mov ecx, 4096
    mov al, 1
    rep stosb
    mov rdi, DATA
    mov ebx, 2
next:
    cmp byte ptr [rdi + rbx], 0
    je skip
    mov eax, ebx
    imul eax, ebx
    cmp eax, 4096
    jae count
strike:
    mov byte ptr [rdi + rax], 0
    add eax, ebx
    cmp eax, 4096
    jb strike
skip:
    inc ebx
    jmp next
count:
    xor eax, eax
    mov ecx, 2
tally:
    movzx edx, byte ptr [rdi + rcx]
    add eax, edx
    inc ecx
    cmp ecx, 4096
    jb tally
    int3
