"""What `jit.entry` puts around the run loops of x86."""

from __future__ import annotations

from ringzero.isa.execution import Execution
from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.insn.mxcsr import leave_host, load_host
from ringzero.isa.x86.interpreter import after_leave

EXECUTION = Execution(Cpu, after_leave, load_host, leave_host)
