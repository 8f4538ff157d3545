"""The program in ringzero's own guests that makes an image's tree the root.

    enter DEVICE

DEVICE holds an EROFS image (`ringzero.image.oci.root`). Its tree becomes the root, beneath a
layer in memory that takes what is written; /dev, /proc, /sys and /run come along, and the root
that was stays at TOOLS. Then the process becomes TOOLS/init in the new root. By mount(8) that
would be a dozen processes, which cost a start more than all else here. Exit status 1 when
something fails; as it is the first process that runs it, the kernel tells.

    BUNDLE/image    the EROFS image: rootfs/, config
    BUNDLE/data     the layer in memory: upper/, work/ (overlayfs.rst)
    BUNDLE/tools    the root that was
"""

from __future__ import annotations

from ringzero.image.guest import elf
from ringzero.image.guest.code import Code, Texts, system_call

# System calls of x86-64 Linux (arch/x86/entry/syscalls/syscall_64.tbl).
WRITE, EXECVE, EXIT, CHDIR, MKDIR, CHROOT, MOUNT = 1, 59, 60, 80, 83, 161, 165
# mount(2)
MS_RDONLY, MS_NOSUID, MS_BIND, MS_MOVE = 0x1, 0x2, 0x1000, 0x2000
_STDERR = 2
_MODE = 0o755

BUNDLE = "/run/ringzero"
IMAGE, MEMORY, TOOLS = f"{BUNDLE}/image", f"{BUNDLE}/data", f"{BUNDLE}/tools"
_ROOT = "/mnt"
_OVERLAY = f"lowerdir={IMAGE}/rootfs,upperdir={MEMORY}/upper,workdir={MEMORY}/work"
_MOVED = ("/dev", "/proc", "/sys", "/run")
_FAILED = "ringzero: the root file system of the image cannot be mounted\n"


def build() -> bytes:
    """Return the whole program as an ELF file."""
    texts = Texts(elf.body_address())
    at = texts.at
    made = Code()
    for path in (BUNDLE, IMAGE, MEMORY, TOOLS):
        made.add(system_call(MKDIR, edi=at(path), esi=_MODE))
    # The device is argv[1], at [rsp+16] (System V ABI, 3.4.1): mov rdi, [rsp+16]
    made.add(b"\x48\x8b\x7c\x24\x10")
    _mount(made, esi=at(IMAGE), edx=at("erofs"), r10d=MS_RDONLY, r8d=0)
    _mount(made, edi=at("data"), esi=at(MEMORY), edx=at("tmpfs"), r10d=0, r8d=at("mode=755"))
    for name in ("upper", "work"):
        made.add(system_call(MKDIR, edi=at(f"{MEMORY}/{name}"), esi=_MODE))
    kind = at("overlay")
    _mount(made, edi=kind, esi=at(_ROOT), edx=kind, r10d=0, r8d=at(_OVERLAY))
    _mount(made, edi=at("/"), esi=at(TOOLS), edx=0, r10d=MS_BIND, r8d=0)
    for path in _MOVED:
        _mount(made, edi=at(path), esi=at(_ROOT + path), edx=0, r10d=MS_MOVE, r8d=0)
    made.add(system_call(CHDIR, edi=at(_ROOT)))
    _mount(made, edi=at("."), esi=at("/"), edx=0, r10d=MS_MOVE, r8d=0)
    made.add(system_call(CHROOT, edi=at(".")))
    # The words of the shell lie in the room: mov qword [disp32], imm32
    words = ("sh", f"{TOOLS}/init", "image")
    for number, word in enumerate(words):
        place = (elf.ROOM + 8 * number).to_bytes(4, "little")
        made.add(b"\x48\xc7\x04\x25" + place + at(word).to_bytes(4, "little"))
    # The environment: mov rax, [rsp]; lea rdx, [rsp+rax*8+16]
    made.add(b"\x48\x8b\x04\x24" + b"\x48\x8d\x54\xc4\x10")
    made.add(system_call(EXECVE, edi=at(f"{TOOLS}/bin/busybox"), esi=elf.ROOM))
    made.label("fail")
    made.add(system_call(WRITE, edi=_STDERR, esi=at(_FAILED), edx=len(_FAILED)))
    made.add(system_call(EXIT, edi=1))
    start = elf.body_address() + len(texts.data)
    return elf.program(texts.data + made.build(), start)


def _mount(made: Code, **registers: int) -> None:
    """Append mount(2), and a jump to "fail" where it returns an error: test eax, eax; js."""
    made.add(system_call(MOUNT, **registers), b"\x85\xc0").jump("js", "fail")
