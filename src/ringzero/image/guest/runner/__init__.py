"""The program in ringzero's own guests that runs the host's commands: a slot of its agent.

    runner RECORD TOOLS LAST AGENT USER GROUPS DIRECTORY NAME NETWORKS

It speaks the protocol of `ringzero.vm.guest.protocol` for one slot, whose ports the script `init`
has opened: control lines at descriptor 3, standard input at 4, and the host's two outputs at 5
and 6. RECORD is the file that says whose process group runs a command; TOOLS
is where the guest's own programs are, "" for the root. When the host is gone, or wants the power
off, the program becomes `init LAST AGENT`, or ends where LAST is "". Commands run as the user USER
with the GROUPS (numbers, the first is its own) in DIRECTORY ("" leaves it alone), in the
environment of the program itself. NAME is the host name in /etc, which is kept like the kernel's;
"" keeps nothing. With NETWORKS, addresses are asked for anew in a copy of the machine.

A command costs the guest one process: made without a copy of this one's memory (clone(2) with
CLONE_VFORK), it makes itself a session, takes its streams and becomes the program. What is rare
is done by scripts beside it: commands with options that name a user, addresses, the power.
"""

from __future__ import annotations

from pathlib import Path

from ringzero.image.guest import elf


def build() -> bytes:
    """Return the whole program as an ELF file."""
    # What compiles it is not needed to know its source.
    from ringzero.image.guest.runner.child import child
    from ringzero.image.guest.runner.memory import ROOM_SIZE, TEXTS
    from ringzero.image.guest.runner.slot import main
    from ringzero.jit import program

    code = program.code(main, (child,))
    return elf.program(TEXTS.data + code, elf.body_address() + len(TEXTS.data), ROOM_SIZE)


def source() -> str:
    """Return what the program is made of, which is sooner had than the program."""
    return "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py")))
