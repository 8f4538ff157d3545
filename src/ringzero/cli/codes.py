"""The exit codes of the command line, all of them.

Errors have theirs in `ringzero.errors`; `TABLE` says what each code means, and docs/run.md has
the same table for people. A test compares the three.
"""

from __future__ import annotations

import signal

# sysexits.h EX_SOFTWARE: an internal fault.
INTERNAL = 70
INTERRUPTED = 128 + signal.SIGINT

TABLE: dict[int, str] = {
    0: "good; from `run` without a command: the guest switched itself off",
    1: "`disk compare`: the images differ; `snapshot diff`: the snapshots do; "
    "`engine status`: none is compiled; `image build`: a RUN failed; "
    "`deploy`: the new version did not come up, the old one serves",
    2: "a flag or value that makes no sense; all faults are listed together",
    3: "something named does not exist: a file, machine, image, snapshot, format, command; "
    "from `run --kernel`: the guest asked for a reboot",
    4: "the host refused: a full disk, no right, no network; output that cannot be written",
    5: "a kernel, initrd or image that cannot be booted",
    6: "a disk image",
    7: "a CPU engine",
    8: "a device",
    9: "saved state that cannot be restored",
    10: "a machine's process does not answer, or ended during the answer",
    11: "a name that is taken, or a machine in the wrong state",
    12: "one who may not: a connection that only reads",
    INTERNAL: "a fault in ringzero itself",
    124: "the time allowed by `--timeout` is over, or nobody answered in time",
    125: "the guest failed: a panic, a triple fault, or its end before the command's",
    INTERRUPTED: "Ctrl-C",
    128 + signal.SIGTERM: "SIGTERM; 129 SIGHUP",
}
