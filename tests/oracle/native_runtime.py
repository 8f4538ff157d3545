"""The program that the native oracle runs cases in: a static ELF without libc.

It is assembled here by LLVM. Its address space holds the guest window of
`model`, its own pages at `BASE` and the shared batch buffer, nothing else, so
that a wild case has nothing to harm. Its standard input is the shared buffer's
memfd and its standard output a socket: it waits there for a byte, runs the
batch, and sends a byte back.

Every case is entered with IRETQ (all registers loaded, RSP included) and ends
with a signal: INT3 at its end, or a fault. The handler reads the registers
from the signal frame, stores the result and goes on with the next case without
ever returning. A seccomp filter turns system calls made outside this program's
own page into SIGSYS.

Shared buffer (little endian):

    control    0 case count | 8 current index | 16 index to cancel | 24 cases done
    input      per case: record size, patch count, CS, 0 (u32 each; 16 bytes),
               `State.raw` at 16; at 672 the patches: offset in the window
               image (u32), length (u32), bytes padded to 8
    output     per case: `State.raw`, CR2 (u64), signal, trap number, error code,
               number of changed lines (u32 each), then lines: address (u64), 64 bytes;
               the record is padded to 16

The window image is the code window followed by the data pages.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from tests.oracle.assembler import assemble
from tests.oracle.model import (
    CODE_BASE,
    CODE_SIZE,
    DATA_BASE,
    DATA_SIZE,
    FS_BASE,
    FXSAVE_SIZE,
    GS_BASE,
    INITIAL_DATA,
    RO_BASE,
    RO_SIZE,
)

BASE: Final = 0x5000_0000_0000
_PRIVATE: Final = BASE + 0x10000
_ALTSTACK: Final = BASE + 0x40000
_ALTSTACK_SIZE: Final = 0x10000
_SHARED: Final = BASE + 0x100_0000

INPUT_OFFSET: Final = 0x1000
INPUT_SIZE: Final = 8 << 20
OUTPUT_OFFSET: Final = INPUT_OFFSET + INPUT_SIZE
OUTPUT_SIZE: Final = 8 << 20
SHARED_SIZE: Final = OUTPUT_OFFSET + OUTPUT_SIZE
INPUT_HEADER: Final = struct.Struct("<IIII")
OUTPUT_TAIL: Final = struct.Struct("<QIIII")
PATCHES_AT: Final = 672
_LARGEST_OUTPUT: Final = 0x8000
"""Above the size of a record in which every line of the window has changed."""

EXIT_BROKEN: Final = 99
"""Exit status when set-up failed or the program itself faulted."""
SIGALRM: Final = 14
SIGSYS: Final = 31

# Offsets in the private page: variables, then the tables that the ELF provides.
_FX_MASK_AT: Final = 0x100
_FILTER_AT: Final = 0x300
_FILTER_PROG_AT: Final = 0x380
_SIGACTION_AT: Final = 0x3A0
_ALTSTACK_AT: Final = 0x3C0
_DATA_AT: Final = 0x1000
_WINDOW_AT: Final = _DATA_AT + DATA_SIZE
_PRIVATE_SIZE: Final = _WINDOW_AT + CODE_SIZE + DATA_SIZE

_SA_FLAGS: Final = 0x4 | 0x4000000 | 0x8000000 | 0x40000000
"""SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER."""

_SOURCE: Final = f"""
.set PRIVATE, {_PRIVATE:#x}
.set SHARED, {_SHARED:#x}
.set V_INPUT, 0
.set V_OUTPUT, 8
.set V_INDEX, 16
.set V_FRAME, 32
.set V_BYTE, 80

start:
    # mmap(SHARED, size, PROT_READ|PROT_WRITE, MAP_SHARED|MAP_FIXED, fd, 0)
    mov eax, 9
    movabs rdi, SHARED
    mov esi, {SHARED_SIZE:#x}
    mov edx, 3
    mov r10d, 0x11
    xor r8d, r8d
    xor r9d, r9d
    syscall
    movabs rdx, SHARED
    cmp rax, rdx
    jne broken
    movabs rbp, PRIVATE
    # sigaltstack(private + ALTSTACK_AT, 0)
    mov eax, 131
    lea rdi, [rbp + {_ALTSTACK_AT}]
    xor esi, esi
    syscall
    # rt_sigaction(n, private + SIGACTION_AT, 0, 8) for SIGILL TRAP BUS FPE SEGV ALRM SYS
    lea rax, [rip + handler]
    mov [rbp + {_SIGACTION_AT}], rax
    lea rax, [rip + restorer]
    mov [rbp + {_SIGACTION_AT} + 16], rax
    mov ebx, {sum(1 << n for n in (4, 5, 7, 8, 11, SIGALRM, SIGSYS)):#x}
actions:
    bsf edi, ebx
    jz actions_done
    btr ebx, edi
    mov eax, 13
    lea rsi, [rbp + {_SIGACTION_AT}]
    xor edx, edx
    mov r10d, 8
    syscall
    jmp actions
actions_done:
    # prctl(PR_SET_PDEATHSIG, SIGKILL)
    mov eax, 157
    mov edi, 1
    mov esi, 9
    syscall
    # prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    mov eax, 157
    mov edi, 38
    mov esi, 1
    xor edx, edx
    xor r10d, r10d
    xor r8d, r8d
    syscall
    # seccomp(SECCOMP_SET_MODE_FILTER, 0, program)
    mov eax, 317
    mov edi, 1
    xor esi, esi
    lea rdx, [rbp + {_FILTER_PROG_AT}]
    syscall
    test eax, eax
    jnz broken
    # Have the read-only page present, so that a write to it says so in its error code.
    mov eax, {RO_BASE:#x}
    mov al, [rax]

wait:
    movabs rbp, PRIVATE
    xor eax, eax
    mov edi, 1
    lea rsi, [rbp + V_BYTE]
    mov edx, 1
    syscall
    cmp rax, -4
    je wait
    cmp rax, 1
    jne leave
    movabs rax, SHARED + {INPUT_OFFSET}
    mov [rbp + V_INPUT], rax
    movabs rax, SHARED + {OUTPUT_OFFSET}
    mov [rbp + V_OUTPUT], rax
    mov qword ptr [rbp + V_INDEX], 0

next:
    movabs rbp, PRIVATE
    movabs r8, SHARED
    mov rax, [rbp + V_INDEX]
    mov [r8 + 8], rax
    cmp rax, [r8]
    jae batch_done
    movabs rdx, SHARED + {OUTPUT_OFFSET + OUTPUT_SIZE - _LARGEST_OUTPUT}
    cmp [rbp + V_OUTPUT], rdx
    ja batch_done
    # The window image: INT3 everywhere, the initial data, then the patches.
    cld
    mov rbx, [rbp + V_INPUT]
    lea rdi, [rbp + {_WINDOW_AT}]
    movabs rax, 0xcccccccccccccccc
    mov ecx, {CODE_SIZE // 8}
    rep stosq
    lea rsi, [rbp + {_DATA_AT}]
    mov ecx, {DATA_SIZE // 8}
    rep movsq
    mov edx, [rbx + 4]
    lea rsi, [rbx + {PATCHES_AT}]
    jmp patch_test
patch:
    mov eax, [rsi]
    mov ecx, [rsi + 4]
    add rsi, 8
    lea rdi, [rbp + rax + {_WINDOW_AT}]
    rep movsb
    add rsi, 7
    and rsi, -8
    dec edx
patch_test:
    test edx, edx
    jnz patch
    lea rsi, [rbp + {_WINDOW_AT}]
    mov edi, {CODE_BASE:#x}
    mov ecx, {CODE_SIZE // 8}
    rep movsq
    mov edi, {DATA_BASE:#x}
    mov ecx, {DATA_SIZE // 8}
    rep movsq
    # Data segments: flat selectors, so that 32-bit code can use them, then the bases.
    mov eax, 0x2b
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov eax, {FS_BASE:#x}
    wrfsbase rax
    mov eax, {GS_BASE:#x}
    wrgsbase rax
    # The IRETQ frame, then all registers.
    lea r15, [rbx + 16]
    mov rax, [r15 + 128]
    mov [rbp + V_FRAME], rax
    mov eax, [rbx + 8]
    mov [rbp + V_FRAME + 8], rax
    mov rax, [r15 + 136]
    mov [rbp + V_FRAME + 16], rax
    mov rax, [r15 + 32]
    mov [rbp + V_FRAME + 24], rax
    mov qword ptr [rbp + V_FRAME + 32], 0x2b
    fxrstor64 [r15 + 144]
    lea rsp, [rbp + V_FRAME]
    mov rax, [r15]
    mov rcx, [r15 + 8]
    mov rdx, [r15 + 16]
    mov rbx, [r15 + 24]
    mov rbp, [r15 + 40]
    mov rsi, [r15 + 48]
    mov rdi, [r15 + 56]
    mov r8, [r15 + 64]
    mov r9, [r15 + 72]
    mov r10, [r15 + 80]
    mov r11, [r15 + 88]
    mov r12, [r15 + 96]
    mov r13, [r15 + 104]
    mov r14, [r15 + 112]
    mov r15, [r15 + 120]
    iretq

handler:
    push 2
    popfq
    mov eax, [rdx + 172]
    cmp eax, {BASE >> 32:#x}
    jne from_guest
    cmp edi, {SIGALRM}
    jne broken
    ret
from_guest:
    movabs rbp, PRIVATE
    movabs r8, SHARED
    cmp edi, {SIGALRM}
    jne ended
    mov rax, [r8 + 16]
    cmp rax, [rbp + V_INDEX]
    je ended
    ret
restorer:
    mov eax, 15
    syscall
ended:
    mov rbx, [rbp + V_OUTPUT]
    mov rax, [rdx + 40 + 8*13]
    mov [rbx], rax
    mov rax, [rdx + 40 + 8*14]
    mov [rbx + 8], rax
    mov rax, [rdx + 40 + 8*12]
    mov [rbx + 16], rax
    mov rax, [rdx + 40 + 8*11]
    mov [rbx + 24], rax
    mov rax, [rdx + 40 + 8*15]
    mov [rbx + 32], rax
    mov rax, [rdx + 40 + 8*10]
    mov [rbx + 40], rax
    mov rax, [rdx + 40 + 8*9]
    mov [rbx + 48], rax
    mov rax, [rdx + 40 + 8*8]
    mov [rbx + 56], rax
    xor ecx, ecx
high_registers:
    mov rax, [rdx + rcx*8 + 40]
    mov [rbx + rcx*8 + 64], rax
    inc ecx
    cmp ecx, 8
    jne high_registers
    mov rax, [rdx + 40 + 8*16]
    mov [rbx + 128], rax
    mov rax, [rdx + 40 + 8*17]
    and rax, {~0x10000}
    mov [rbx + 136], rax
    mov rsi, [rdx + 224]
    xor ecx, ecx
fx_lines:
    movdqu xmm0, [rsi + rcx]
    pand xmm0, [rbp + rcx + {_FX_MASK_AT}]
    movdqu [rbx + rcx + 144], xmm0
    add ecx, 16
    cmp ecx, {FXSAVE_SIZE}
    jne fx_lines
    mov rcx, [rdx + 40 + 8*20]
    xor eax, eax
    cmp ecx, 14
    cmove rax, [rdx + 40 + 8*22]
    mov [rbx + 656], rax
    mov [rbx + 664], edi
    mov [rbx + 668], ecx
    xor eax, eax
    mov esi, {sum(1 << n for n in (8, 10, 11, 12, 13, 14, 17)):#x}
    bt esi, ecx
    cmovc eax, [rdx + 40 + 8*19]
    mov [rbx + 672], eax
    # Changed lines: r9 in the image, r10 in the window.
    lea r11, [rbx + 680]
    xor r12d, r12d
    lea r9, [rbp + {_WINDOW_AT}]
    mov r10d, {CODE_BASE:#x}
    mov ecx, {CODE_SIZE // 64}
    call scan
    mov r10d, {DATA_BASE:#x}
    mov ecx, {DATA_SIZE // 64}
    call scan
    mov [rbx + 676], r12d
    add r11, 15
    and r11, -16
    mov [rbp + V_OUTPUT], r11
    mov rax, [rbp + V_INPUT]
    mov ecx, [rax]
    add rax, rcx
    mov [rbp + V_INPUT], rax
    inc qword ptr [rbp + V_INDEX]
    jmp next

scan:
    movdqa xmm0, [r9]
    movdqa xmm1, [r9 + 16]
    movdqa xmm2, [r9 + 32]
    movdqa xmm3, [r9 + 48]
    pcmpeqb xmm0, [r10]
    pcmpeqb xmm1, [r10 + 16]
    pcmpeqb xmm2, [r10 + 32]
    pcmpeqb xmm3, [r10 + 48]
    pand xmm0, xmm1
    pand xmm2, xmm3
    pand xmm0, xmm2
    pmovmskb eax, xmm0
    cmp eax, 0xffff
    je same
    mov [r11], r10
    movdqa xmm0, [r10]
    movdqa xmm1, [r10 + 16]
    movdqa xmm2, [r10 + 32]
    movdqa xmm3, [r10 + 48]
    movdqu [r11 + 8], xmm0
    movdqu [r11 + 24], xmm1
    movdqu [r11 + 40], xmm2
    movdqu [r11 + 56], xmm3
    add r11, 72
    inc r12d
same:
    add r9, 64
    add r10, 64
    dec ecx
    jnz scan
    ret

batch_done:
    mov [r8 + 24], rax
    mov eax, 1
    mov edi, 1
    lea rsi, [rbp + V_BYTE]
    mov edx, 1
    syscall
    jmp wait

leave:
    mov eax, 60
    xor edi, edi
    syscall
broken:
    mov eax, 60
    mov edi, {EXIT_BROKEN}
    syscall
"""


def _fx_mask() -> bytes:
    """Ones where an FXSAVE image is compared; see `model.State`."""
    mask = bytearray(FXSAVE_SIZE)
    mask[0:5] = b"\xff" * 5
    mask[24:28] = b"\xff" * 4
    for slot in range(32, 160, 16):
        mask[slot : slot + 10] = b"\xff" * 10
    mask[160:416] = b"\xff" * 256
    return bytes(mask)


def _seccomp_filter() -> bytes:
    """Allow when the high half of the instruction pointer is ours, else SIGSYS."""
    return b"".join(
        struct.pack("<HBBI", code, jt, jf, k)
        for code, jt, jf, k in (
            (0x20, 0, 0, 12),  # A = seccomp_data.instruction_pointer >> 32
            (0x15, 0, 1, BASE >> 32),
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
            (0x06, 0, 0, 0x00030000),  # SECCOMP_RET_TRAP
        )
    )


def _private_image() -> bytes:
    image = bytearray(_DATA_AT + DATA_SIZE)
    image[_FX_MASK_AT : _FX_MASK_AT + FXSAVE_SIZE] = _fx_mask()
    program = _seccomp_filter()
    image[_FILTER_AT : _FILTER_AT + len(program)] = program
    struct.pack_into("<QQ", image, _FILTER_PROG_AT, len(program) // 8, _PRIVATE + _FILTER_AT)
    struct.pack_into("<QQQQ", image, _SIGACTION_AT, 0, _SA_FLAGS, 0, 0)
    struct.pack_into("<QQQ", image, _ALTSTACK_AT, _ALTSTACK, 0, _ALTSTACK_SIZE)
    image[_DATA_AT:] = INITIAL_DATA[:DATA_SIZE]
    return bytes(image)


@functools.cache
def build_elf() -> bytes:
    """The executable, whole."""
    text = assemble(_SOURCE)
    read, write, execute = 4, 2, 1
    segments = (
        (BASE, text, len(text), read | execute),
        (_PRIVATE, _private_image(), _PRIVATE_SIZE, read | write),
        (_ALTSTACK, b"", _ALTSTACK_SIZE, read | write),
        (CODE_BASE, b"", CODE_SIZE, read | write | execute),
        (DATA_BASE, b"", DATA_SIZE, read | write),
        (RO_BASE, INITIAL_DATA[DATA_SIZE:], RO_SIZE, read),
    )
    headers = bytearray()
    body = bytearray()
    at = 4096
    for address, content, size, flags in segments:
        headers += struct.pack(
            "<IIQQQQQQ", 1, flags, at, address, address, len(content), size, 4096
        )
        body += content.ljust(-(-len(content) // 4096) * 4096, b"\0")
        at = 4096 + len(body)
    headers += struct.pack("<IIQQQQQQ", 0x6474E551, read | write, 0, 0, 0, 0, 0, 16)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        2, 62, 1, BASE, 64, 0, 0, 64, 56, len(segments) + 1, 0, 0, 0,
    )  # fmt: skip
    return (elf + headers).ljust(4096, b"\0") + bytes(body)
