"""The door into native code: arms the long-jump buffer and calls the run loop.

Written as IR by hand, because the frame that `long_jump` returns to must be
this function's own (LLVM's setjmp convention: buffer[0] is the frame pointer,
buffer[2] the stack pointer).
"""

from __future__ import annotations

from typing import Any

from ringzero.isa.execution import Execution
from ringzero.jit.compile.module import Module
from ringzero.native import NativeFunction


def define_entry(
    module: Module, name: str, execution: Execution, loop: NativeFunction[Any, int]
) -> None:
    """Define `i32 name(ptr cpu)`: run `loop` until it or an abandoned instruction exits.

    Returns the exit kind.
    """
    enter, leave = (_call(module, f) for f in (execution.enter, execution.leave))
    for function in (loop, execution.after_leave):
        module.require(function)
    for intrinsic, text in (
        ("llvm.eh.sjlj.setjmp", "declare i32 @llvm.eh.sjlj.setjmp(ptr)"),
        ("llvm.frameaddress.p0", "declare ptr @llvm.frameaddress.p0(i32)"),
        ("llvm.stacksave.p0", "declare ptr @llvm.stacksave.p0()"),
    ):
        module.declare(intrinsic, text)
    buffer = execution.cpu.offset_of("jump_buffer")
    kind = execution.cpu.offset_of("exit_kind")
    module.define(
        f"""define i32 @{name}(ptr %cpu) nounwind "frame-pointer"="all" {{
entry:
 %buffer = getelementptr i8, ptr %cpu, i64 {buffer}
 %frame = call ptr @llvm.frameaddress.p0(i32 0)
 store ptr %frame, ptr %buffer
 %stack = call ptr @llvm.stacksave.p0()
 %second = getelementptr i8, ptr %buffer, i64 16
 store ptr %stack, ptr %second
 {enter}
 %arrived = call i32 @llvm.eh.sjlj.setjmp(ptr %buffer)
 %first = icmp eq i32 %arrived, 0
 br i1 %first, label %go, label %landed
landed:
 %leaves = call i32 @{execution.after_leave.name}(ptr %cpu)
 %out = icmp ne i32 %leaves, 0
 br i1 %out, label %exit, label %go
go:
 %reason = call i32 @{loop.name}(ptr %cpu)
 %where = getelementptr i8, ptr %cpu, i64 {kind}
 store i32 %reason, ptr %where
 br label %exit
exit:
 {leave}
 %at = getelementptr i8, ptr %cpu, i64 {kind}
 %result = load i32, ptr %at
 ret i32 %result
}}"""
    )


def _call(module: Module, function: NativeFunction[Any, Any] | None) -> str:
    if function is None:
        return ""
    module.require(function)
    return f"call void @{function.name}(ptr %cpu)"
