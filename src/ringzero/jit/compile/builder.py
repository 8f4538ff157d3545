"""Emits LLVM IR as text for native values; one FunctionBuilder per function.

Text, because it costs 5 us per guest instruction where llvmlite.ir costs 300.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ringzero.native.functions import NativeFunction, StagedFunction
from ringzero.native.generation import as_value
from ringzero.native.types import Bool, Int, StructType, Vec128
from ringzero.native.values import Value

_SIGNED = {"div": "sdiv", "rem": "srem", "shr": "ashr"}
_UNSIGNED = {"div": "udiv", "rem": "urem", "shr": "lshr"}
_ORDER = ("lt", "le", "gt", "ge")
U64 = Int(64)
I1 = Bool()


def llvm_type(kind: Any) -> str:
    """Return LLVM's name of a native type (None means no value)."""
    if isinstance(kind, Int):
        return f"i{kind.bits}"
    if isinstance(kind, Bool):
        return "i1"
    if isinstance(kind, Vec128):
        return "<2 x i64>"
    if isinstance(kind, StructType):
        return "ptr"
    if kind is None:
        return "void"
    raise TypeError(f"{kind!r} is no native type")


class Unit(Protocol):
    """What a builder wants of the module that its function is in."""

    def declare(self, name: str, text: str) -> None: ...
    def define(self, text: str) -> None: ...
    def require(self, function: NativeFunction[Any, Any]) -> tuple[list[Any], Any]: ...
    def inline(
        self,
        builder: FunctionBuilder,
        function: StagedFunction[Any, Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any: ...


class FunctionBuilder:
    """Builds the body of one LLVM function; implements `native.generation.Builder`."""

    def __init__(self, module: Unit) -> None:
        self.module = module
        self.entry: list[str] = []
        self.body: list[str] = []
        self.terminated = False
        # Depth of run-time control flow, to catch generation-time variables that
        # change where only run time knows whether they do.
        self.depth = 0
        self._serial = 0

    # --- names, blocks -------------------------------------------------------

    def fresh(self, stem: str = "v") -> str:
        self._serial += 1
        return f"{stem}{self._serial}"

    def line(self, text: str) -> None:
        if not self.terminated:
            self.body.append(" " + text)

    def emit(self, text: str, kind: Any = None) -> Value:
        if kind is None:
            self.line(text)
            return Value(None, "")
        name = "%" + self.fresh()
        self.line(f"{name} = {text}")
        return Value(kind, name)

    def start(self, label: str) -> None:
        """Begin the block `label`; falls into it when the block before has no end."""
        if not self.terminated:
            self.body.append(f" br label %{label}")
        self.body.append(f"{label}:")
        self.terminated = False

    def jump(self, label: str) -> None:
        self.line(f"br label %{label}")
        self.terminated = True

    def branch(self, condition: Value, yes: str, no: str, weights: str = "") -> None:
        self.line(f"br i1 {condition.ref}, label %{yes}, label %{no}{weights}")
        self.terminated = True

    def ret(self, value: Value | None) -> None:
        if value is None:
            self.line("ret void")
        else:
            self.line(f"ret {llvm_type(value.kind)} {value.ref}")
        self.terminated = True

    def unreachable(self) -> None:
        self.line("unreachable")
        self.terminated = True

    def variable(self, kind: Any) -> str:
        """Reserve a stack slot (a register, after LLVM's mem2reg) and return its name."""
        name = "%" + self.fresh("slot")
        self.entry.append(f" {name} = alloca {llvm_type(kind)}")
        return name

    def get_variable(self, kind: Any, slot: str) -> Value:
        return self.emit(f"load {llvm_type(kind)}, ptr {slot}", kind)

    def set_variable(self, slot: str, value: Value) -> None:
        self.line(f"store {llvm_type(value.kind)} {value.ref}, ptr {slot}")

    # --- arithmetic ----------------------------------------------------------

    def constant(self, kind: Any, number: int) -> Value:
        if isinstance(kind, Bool):
            return Value(kind, "true" if number else "false")
        if isinstance(kind, Int):
            if not -(1 << kind.bits) < number < 1 << kind.bits:
                raise ValueError(f"{number:#x} does not fit {kind}")
            return Value(kind, str(number & kind.mask))
        if isinstance(kind, StructType) and number == 0:
            return Value(kind, "null")
        raise TypeError(f"no constants of {kind!r}")

    def binary(self, operator: str, left: Value, right: Value) -> Value:
        kind = left.kind
        if isinstance(kind, Vec128) and operator not in ("and", "or", "xor"):
            raise TypeError(f"{operator} on a v128")
        names = _SIGNED if isinstance(kind, Int) and kind.signed else _UNSIGNED
        name = names.get(operator, operator)
        return self.emit(f"{name} {llvm_type(kind)} {left.ref}, {right.ref}", kind)

    def compare(self, operator: str, left: Value, right: Value) -> Value:
        kind = left.kind
        if operator in _ORDER:
            prefix = "s" if isinstance(kind, Int) and kind.signed else "u"
            operator = prefix + operator
        return self.emit(f"icmp {operator} {llvm_type(kind)} {left.ref}, {right.ref}", I1)

    def convert(self, kind: Any, value: Value) -> Value:
        source = value.kind
        if source == kind:
            return value
        to, of = llvm_type(kind), llvm_type(source)
        if isinstance(kind, Int) and isinstance(source, Int):
            if kind.bits == source.bits:
                return Value(kind, value.ref)
            if kind.bits < source.bits:
                return self.emit(f"trunc {of} {value.ref} to {to}", kind)
            widen = "sext" if source.signed else "zext"
            return self.emit(f"{widen} {of} {value.ref} to {to}", kind)
        if isinstance(kind, Int) and isinstance(source, Bool):
            return self.emit(f"zext i1 {value.ref} to {to}", kind)
        if isinstance(kind, Bool) and isinstance(source, Int):
            return self.emit(f"icmp ne {of} {value.ref}, 0", kind)
        if kind == U64 and isinstance(source, StructType):
            return self.emit(f"ptrtoint ptr {value.ref} to i64", kind)
        if isinstance(kind, StructType) and source == U64:
            return self.emit(f"inttoptr i64 {value.ref} to ptr", kind)
        if isinstance(kind, StructType) and isinstance(source, StructType):
            return Value(kind, value.ref)
        if {type(kind), type(source)} == {Int, Vec128}:
            return self.emit(f"bitcast {of} {value.ref} to {to}", kind)
        raise TypeError(f"no conversion from {source} to {kind}")

    def select(self, condition: Value, yes: Value, no: Value) -> Value:
        name = llvm_type(yes.kind)
        return self.emit(f"select i1 {condition.ref}, {name} {yes.ref}, {name} {no.ref}", yes.kind)

    def intrinsic(self, name: str, kind: Any, arguments: Sequence[Value]) -> Value:
        to = llvm_type(kind)
        suffix = f".{to}"
        full = f"llvm.{name}{suffix}"
        kinds = ", ".join(llvm_type(a.kind) for a in arguments)
        self.module.declare(full, f"declare {to} @{full}({kinds})")
        given = ", ".join(f"{llvm_type(a.kind)} {a.ref}" for a in arguments)
        return self.emit(f"call {to} @{full}({given})", kind)

    # --- memory --------------------------------------------------------------

    def _pointer(self, base: Value, offset: int | Value) -> str:
        ref = base.ref
        if not isinstance(base.kind, StructType):
            ref = self.emit(f"inttoptr i64 {ref} to ptr", base.kind).ref
        if isinstance(offset, int) and offset == 0:
            return ref
        amount = str(offset) if isinstance(offset, int) else offset.ref
        return self.emit(f"getelementptr i8, ptr {ref}, i64 {amount}", base.kind).ref

    def offset(self, base: Value, offset: int | Value) -> Value:
        return Value(base.kind, self._pointer(base, offset))

    def _align(self, base: Value, kind: Any) -> int:
        return int(kind.size) if isinstance(base.kind, StructType) else 1

    def load(self, kind: Any, base: Value, offset: int | Value) -> Value:
        where = self._pointer(base, offset)
        if isinstance(kind, Bool):
            byte = self.emit(f"load i8, ptr {where}", Int(8))
            return self.convert(kind, byte)
        align = min(self._align(base, kind), 16)
        return self.emit(f"load {llvm_type(kind)}, ptr {where}, align {align}", kind)

    def store(self, kind: Any, base: Value, offset: int | Value, value: Value) -> None:
        where = self._pointer(base, offset)
        if isinstance(kind, Bool):
            value = self.convert(Int(8), value)
        align = min(self._align(base, kind), 16)
        self.line(f"store {llvm_type(value.kind)} {value.ref}, ptr {where}, align {align}")

    def atomic(self, operator: str, kind: Any, address: Value, *arguments: Value) -> Value:
        where = self._pointer(address, 0)
        name = llvm_type(kind)
        # A guest may lock a misaligned operand; x86 hosts honour that, so the
        # access is declared aligned and LLVM keeps the single instruction.
        if operator == "cmpxchg":
            expected, desired = arguments
            pair = self.emit(
                f"cmpxchg ptr {where}, {name} {expected.ref}, {name} {desired.ref} "
                f"seq_cst seq_cst, align {kind.size}",
                kind,
            )
            return self.emit(f"extractvalue {{ {name}, i1 }} {pair.ref}, 0", kind)
        return self.emit(
            f"atomicrmw {operator} ptr {where}, {name} {arguments[0].ref} seq_cst, "
            f"align {kind.size}",
            kind,
        )

    def bulk(self, name: str, to: Value, what: Value, count: Value) -> None:
        where = self._pointer(to, 0)
        if name == "memset":
            full, kinds = "llvm.memset.p0.i64", "ptr, i8, i64, i1"
            given = f"ptr {where}, i8 {what.ref}, i64 {count.ref}, i1 false"
        else:
            full, kinds = f"llvm.{name}.p0.p0.i64", "ptr, ptr, i64, i1"
            given = f"ptr {where}, ptr {self._pointer(what, 0)}, i64 {count.ref}, i1 false"
        self.module.declare(full, f"declare void @{full}({kinds})")
        self.line(f"call void @{full}({given})")

    def assembly(
        self, result: Any, text: str, constraints: str, arguments: Sequence[Value]
    ) -> Value | None:
        given = ", ".join(
            f"ptr {self._pointer(a, 0)}"
            if isinstance(a.kind, StructType)
            else f"{llvm_type(a.kind)} {a.ref}"
            for a in arguments
        )
        quoted = text.replace("\n", "\\0A").replace("\t", "\\09")
        call = f'call {llvm_type(result)} asm sideeffect "{quoted}", "{constraints}"({given})'
        value = self.emit(call, result)
        return value if result is not None else None

    def long_jump(self, buffer: Value) -> None:
        self.module.declare(
            "llvm.eh.sjlj.longjmp", "declare void @llvm.eh.sjlj.longjmp(ptr) noreturn"
        )
        self.line(f"call void @llvm.eh.sjlj.longjmp(ptr {self._pointer(buffer, 0)})")
        self.unreachable()

    # --- calls ---------------------------------------------------------------

    def call(self, function: NativeFunction[Any, Any], arguments: Sequence[Any]) -> Value | None:
        """Emit a call of a native function (which is thereby compiled too)."""
        kinds, result = self.module.require(function)
        if len(kinds) != len(arguments):
            raise TypeError(f"{function.name} takes {len(kinds)} arguments")
        try:
            values = [as_value(a, k) for a, k in zip(arguments, kinds, strict=True)]
        except TypeError as fault:
            raise TypeError(f"in a call of {function.name}: {fault}") from fault
        given = ", ".join(f"{llvm_type(v.kind)} {v.ref}" for v in values)
        convention = f"{function.convention} " if function.convention else ""
        text = f"call {convention}{llvm_type(result)} @{function.name}({given})"
        value = self.emit(text, result)
        if function.noreturn:
            self.unreachable()
        return value if result is not None else None

    def call_address(self, address: Value, result: Any, arguments: Sequence[Value]) -> Any:
        """Emit a call of the native function (C convention) at a host address."""
        where = self._pointer(address, 0)
        given = ", ".join(f"{llvm_type(v.kind)} {v.ref}" for v in arguments)
        value = self.emit(f"call {llvm_type(result)} {where}({given})", result)
        return value if result is not None else None

    def inline(
        self, function: StagedFunction[Any, Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Run a staged function here."""
        return self.module.inline(self, function, args, kwargs)
