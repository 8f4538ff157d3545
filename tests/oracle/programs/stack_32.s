# mode: 32
# PUSHA, POPA, stack arguments, RET n, recursion, ENTER and LEAVE.
    mov esi, DATA
    pushad
    push 8
    call factorial
    mov [esi], eax
    mov edi, 12
    popad
    push 5
    push 6
    call add_both
    pushfd
    pop ecx
    and ecx, 0x8d5
    mov ebp, DATA + 0x3000
    call framed
    pusha
    popa
    int3
factorial:
    mov eax, [esp + 4]
    cmp eax, 1
    jbe base
    dec eax
    push eax
    call factorial
    imul eax, [esp + 4]
base:
    ret 4
add_both:
    push ebp
    mov ebp, esp
    mov eax, [ebp + 8]
    add eax, [ebp + 12]
    pop ebp
    ret 8
framed:
    enter 16, 2
    mov [ebp - 12], eax
    lea edx, [ebp - 12]
    sub edx, esp
    leave
    ret
