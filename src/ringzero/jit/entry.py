"""The door into native code: arms the long-jump buffer and calls the run loop.

Written as IR by hand, because the frame that `long_jump` returns to must be
this function's own (LLVM's setjmp convention: buffer[0] is the frame pointer,
buffer[2] the stack pointer).
"""

from __future__ import annotations

from ringzero.isa.x86.cpu import Cpu
from ringzero.isa.x86.insn.mxcsr import leave_host, load_host
from ringzero.isa.x86.interpreter import after_leave
from ringzero.jit.compile.module import Module
from ringzero.native import NativeFunction


def define_entry(module: Module, name: str, loop: NativeFunction[[Cpu], int]) -> None:
    """Define `i32 name(ptr cpu)`: run `loop` until it or an abandoned instruction exits.

    Returns the exit kind.
    """
    for function in (loop, after_leave, load_host, leave_host):
        module.require(function)
    for intrinsic, text in (
        ("llvm.eh.sjlj.setjmp", "declare i32 @llvm.eh.sjlj.setjmp(ptr)"),
        ("llvm.frameaddress.p0", "declare ptr @llvm.frameaddress.p0(i32)"),
        ("llvm.stacksave.p0", "declare ptr @llvm.stacksave.p0()"),
    ):
        module.declare(intrinsic, text)
    buffer = Cpu.offset_of("jump_buffer")
    kind = Cpu.offset_of("exit_kind")
    module.define(
        f"""define i32 @{name}(ptr %cpu) nounwind "frame-pointer"="all" {{
entry:
 %buffer = getelementptr i8, ptr %cpu, i64 {buffer}
 %frame = call ptr @llvm.frameaddress.p0(i32 0)
 store ptr %frame, ptr %buffer
 %stack = call ptr @llvm.stacksave.p0()
 %second = getelementptr i8, ptr %buffer, i64 16
 store ptr %stack, ptr %second
 call void @{load_host.name}(ptr %cpu)
 %arrived = call i32 @llvm.eh.sjlj.setjmp(ptr %buffer)
 %first = icmp eq i32 %arrived, 0
 br i1 %first, label %go, label %landed
landed:
 %leaves = call i32 @{after_leave.name}(ptr %cpu)
 %out = icmp ne i32 %leaves, 0
 br i1 %out, label %exit, label %go
go:
 %reason = call i32 @{loop.name}(ptr %cpu)
 %where = getelementptr i8, ptr %cpu, i64 {kind}
 store i32 %reason, ptr %where
 br label %exit
exit:
 call void @{leave_host.name}(ptr %cpu)
 %at = getelementptr i8, ptr %cpu, i64 {kind}
 %result = load i32, ptr %at
 ret i32 %result
}}"""
    )
