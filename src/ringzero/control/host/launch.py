"""Starts a machine's process and waits until the machine is up. Loads no engine itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import ringzero
from ringzero.control.host.directory import VMM_LOG, Claim, MachineDirectory
from ringzero.control.host.report import follow
from ringzero.errors import GuestError, HostError, RingzeroError
from ringzero.host.progress import Progress

# -P: the current directory is no place to import from.
PROGRAM = (sys.executable, "-P", "-m", "ringzero.control")


def launch(
    claim: Claim,
    *,
    wait: bool = True,
    progress: Progress | None = None,
    program: Sequence[str] | None = None,
    hand_over: Callable[[Claim, int], bool] | None = None,
) -> MachineDirectory:
    """Start the process of a machine whose directory is claimed; return when the guest is up.

    With `wait` False, return when the process runs. `hand_over` gives claim and report to a process
    that is there and becomes the machine's; False where there is none. A new machine that could not
    be built leaves no directory behind. Raises what the machine's process raises.
    """
    directory = claim.directory
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        if hand_over is None or not hand_over(claim, writing):
            _spawn(claim, writing, program or PROGRAM)
    except BaseException:
        os.close(reading)
        claim.discard()
        raise
    finally:
        os.close(writing)
    if not wait:
        os.close(reading)
        claim.release()
        return directory
    try:
        follow(reading, directory, progress or Progress())
    except GuestError:
        # The guest ran, and what it said is worth reading.
        claim.release()
        raise
    except KeyboardInterrupt:
        claim.release()
        directory.end_process()
        if not claim.again:
            directory.remove()
        raise
    except RingzeroError:
        process = directory.process()
        if process is not None:
            process.identity.wait(5.0)
        claim.discard()
        raise
    claim.release()
    return directory


def _spawn(claim: Claim, report: int, program: Sequence[str]) -> None:
    """Start the process in a session of its own, with nothing of ours but lock and report."""
    path = claim.directory.path
    environment = dict(os.environ)
    roots = [str(Path(ringzero.__file__).parent.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, roots))
    try:
        with (path / VMM_LOG).open("ab") as log:
            starter = subprocess.Popen(
                [*program, str(path), str(claim.lock), str(report)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(claim.lock, report),
                env=environment,
            )
        # It forks at once, and the machine's process is the child, which nobody waits for.
        starter.wait()
    except OSError as fault:
        what = f" ({fault.filename})" if fault.filename else ""
        raise HostError(
            f"cannot start a process: {fault.strerror}{what}",
            hint="a machine's process needs Python, /dev/null and its directory",
        ) from fault
    if starter.returncode != 0:
        text = claim.directory.tail(VMM_LOG, 1000).strip()
        raise HostError(f"the machine's process did not start\n{text}")
