"""Runs the body of a native or staged function at generation time, emitting code.

An interpreter over the function's syntax tree. What is known now is computed
now, with Python's own operators; what is known only at run time is a `Value`,
whose operators emit code. Statements on Values become branches and loops.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import operator
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ringzero.jit.compile.builder import FunctionBuilder, llvm_type
from ringzero.native.functions import NativeFunction, StagedFunction
from ringzero.native.generation import as_value, convert
from ringzero.native.types import Bool, StructType
from ringzero.native.values import Value, set_field

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.Pow: operator.pow,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
# range() over values becomes a loop at run time.
_MISSING = object()


class StagingError(Exception):
    """A function of the native language that cannot be generated; says where."""


@dataclass
class Variable:
    """A local that lives at run time."""

    kind: Any
    slot: str


@dataclass
class Loop:
    """Where `break` and `continue` of the innermost loop go."""

    again: str
    done: str
    unrolled: bool


@functools.cache
def _syntax(function: Callable[..., Any]) -> tuple[ast.FunctionDef, str, int]:
    source = textwrap.dedent(inspect.getsource(function))
    tree = ast.parse(source).body[0]
    if not isinstance(tree, ast.FunctionDef):
        raise StagingError(f"{function} is not a plain function")
    return tree, inspect.getsourcefile(function) or "?", function.__code__.co_firstlineno


_signature = functools.cache(inspect.signature)


@functools.cache
def _closure(function: Callable[..., Any]) -> dict[str, Any]:
    found = inspect.getclosurevars(function)
    return {**found.nonlocals}


class Execution:
    """One run of one function body into a FunctionBuilder."""

    def __init__(self, builder: FunctionBuilder, function: Callable[..., Any]) -> None:
        self.builder = builder
        self.function = function
        self.names: dict[str, Any] = {}
        self.bound_at: dict[str, int] = {}
        self.loops: list[Loop] = []
        self.entry_depth = builder.depth
        self.is_native = False
        self.result_kind: Any = None
        self.result: Any = _MISSING
        self.result_slots: list[Variable] | None = None
        self.result_is_tuple = False
        self.end = ""

    # --- entry points --------------------------------------------------------

    def run(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run inline and return the result (a Value, a Python object, a tuple)."""
        tree, _, _ = _syntax(self.function)
        bound = _signature(self.function).bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            self._bind_argument(name, value)
        self._block(tree.body)
        return self._finish_inline()

    def run_native(self, parameters: dict[str, Value], result_kind: Any) -> None:
        """Run as the body of a native function of its own."""
        self.is_native = True
        self.result_kind = result_kind
        tree, _, _ = _syntax(self.function)
        for name, value in parameters.items():
            self._bind_argument(name, value)
        self._block(tree.body)
        if not self.builder.terminated:
            if result_kind is None:
                self.builder.ret(None)
            else:
                self.builder.unreachable()

    def _bind_argument(self, name: str, value: Any) -> None:
        # A value that the body assigns to needs a variable; others stay as they are.
        if isinstance(value, Value) and name in _assigned(self.function):
            slot = self.builder.variable(value.kind)
            self.builder.set_variable(slot, value)
            self.names[name] = Variable(value.kind, slot)
        else:
            self.names[name] = value
            self.bound_at[name] = self.builder.depth

    def _finish_inline(self) -> Any:
        builder = self.builder
        if not self.end:
            return None if self.result is _MISSING else self.result
        if not builder.terminated:
            builder.jump(self.end)
        builder.start(self.end)
        if self.result_slots is None:
            return None
        values = [builder.get_variable(v.kind, v.slot) for v in self.result_slots]
        return tuple(values) if self.result_is_tuple else values[0]

    # --- statements ----------------------------------------------------------

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.terminated or (self.result is not _MISSING and not self.end):
                return
            try:
                getattr(self, "_do_" + type(statement).__name__)(statement)
            except StagingError:
                raise
            except Exception as fault:
                raise StagingError(self._where(statement, str(fault))) from fault

    def _where(self, node: ast.stmt | ast.expr, what: str) -> str:
        _, file, first = _syntax(self.function)
        return f"{file}:{first + node.lineno - 1}: in {self.function.__qualname__}: {what}"

    def _do_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self._eval(node.value)

    def _do_Pass(self, node: ast.Pass) -> None: ...

    def _do_Assert(self, node: ast.Assert) -> None:
        if not self._eval(node.test):
            raise TypeError("assertion failed at generation time")

    def _do_Raise(self, node: ast.Raise) -> None:
        raise TypeError(str(self._eval(node.exc)) if node.exc else "raise")

    def _do_Import(self, node: ast.Import) -> None:
        raise TypeError("import at module level")

    def _do_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is None or not isinstance(node.target, ast.Name):
            raise TypeError("an annotation needs a name and a value")
        kind = self._eval(node.annotation)
        if isinstance(kind, str):
            kind = eval(kind, self.function.__globals__)
        self._bind(node.target.id, convert(kind, self._eval(node.value)))

    def _do_Assign(self, node: ast.Assign) -> None:
        value = self._eval(node.value)
        for target in node.targets:
            self._assign(target, value)

    def _do_AugAssign(self, node: ast.AugAssign) -> None:
        target = node.target
        if isinstance(target, ast.Name):
            load: ast.expr = ast.copy_location(ast.Name(target.id, ast.Load()), target)
            old = self._eval(load)
            self._bind(target.id, _BINARY[type(node.op)](old, self._eval(node.value)))
        elif isinstance(target, ast.Attribute):
            base = self._eval(target.value)
            new = _BINARY[type(node.op)](getattr(base, target.attr), self._eval(node.value))
            self._store_attribute(base, target.attr, new)
        elif isinstance(target, ast.Subscript):
            base, index = self._eval(target.value), self._eval(target.slice)
            base[index] = _BINARY[type(node.op)](base[index], self._eval(node.value))

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._bind(target.id, value)
        elif isinstance(target, ast.Attribute):
            self._store_attribute(self._eval(target.value), target.attr, value)
        elif isinstance(target, ast.Subscript):
            self._eval(target.value)[self._eval(target.slice)] = value
        elif isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, value, strict=True):
                self._assign(part, item)
        else:
            raise TypeError(f"cannot assign to {ast.unparse(target)}")

    def _store_attribute(self, base: Any, name: str, value: Any) -> None:
        if isinstance(base, Value):
            set_field(base, name, value)
        else:
            setattr(base, name, value)

    def _bind(self, name: str, value: Any) -> None:
        known = self.names.get(name)
        if isinstance(known, Variable):
            self.builder.set_variable(known.slot, as_value(value, known.kind))
            return
        if isinstance(value, Value):
            if name in self.names and self.bound_at.get(name, 0) != self.builder.depth:
                raise TypeError(f"{name} was a generation-time variable: start it as a value")
            slot = self.builder.variable(value.kind)
            self.builder.set_variable(slot, value)
            self.names[name] = Variable(value.kind, slot)
            return
        if name in self.names and self.bound_at.get(name, 0) < self.builder.depth:
            raise TypeError(f"{name} is a generation-time variable and changes under a run-time if")
        self.names[name] = value
        self.bound_at[name] = self.builder.depth

    def _do_If(self, node: ast.If) -> None:
        condition = self._eval(node.test)
        if not isinstance(condition, Value):
            self._block(node.body if condition else node.orelse)
            return
        builder = self.builder
        yes, done = builder.fresh("then"), builder.fresh("endif")
        no = builder.fresh("else") if node.orelse else done
        builder.branch(truth(condition), yes, no)
        builder.start(yes)
        self._nested(node.body)
        ended = builder.terminated
        if not ended:
            builder.jump(done)
        if node.orelse:
            builder.terminated = True
            builder.start(no)
            self._nested(node.orelse)
            if builder.terminated and ended:
                return
            ended = ended and builder.terminated
            if not builder.terminated:
                builder.jump(done)
        builder.terminated = True
        builder.start(done)

    def _nested(self, statements: Sequence[ast.stmt]) -> None:
        self.builder.depth += 1
        self._block(statements)
        self.builder.depth -= 1

    def _do_While(self, node: ast.While) -> None:
        builder = self.builder
        again, body, done = (builder.fresh(s) for s in ("loop", "body", "done"))
        builder.start(again)
        condition = self._eval(node.test)
        if isinstance(condition, Value):
            builder.branch(truth(condition), body, done)
        elif condition:
            builder.jump(body)
        else:
            raise TypeError("while on a condition that is false at generation time")
        builder.start(body)
        self.loops.append(Loop(again, done, unrolled=False))
        self._nested(node.body)
        self.loops.pop()
        if not builder.terminated:
            builder.jump(again)
        builder.start(done)

    def _do_For(self, node: ast.For) -> None:
        items = self._iterable(node)
        if items is None:
            return
        for item in items:
            self._assign(node.target, item)
            self._block(node.body)
            if self.builder.terminated:
                return

    def _iterable(self, node: ast.For) -> Any:
        call = node.iter
        name = call.func if isinstance(call, ast.Call) else None
        if isinstance(call, ast.Call) and isinstance(name, ast.Name) and name.id == "range":
            bounds = [self._eval(a) for a in call.args]
            if any(isinstance(b, Value) for b in bounds):
                self._counted_loop(node, bounds)
                return None
            return range(*bounds)
        return self._eval(call)

    def _counted_loop(self, node: ast.For, bounds: list[Any]) -> None:
        builder = self.builder
        if len(bounds) > 2 or not isinstance(node.target, ast.Name):
            raise TypeError("a run-time range() takes one or two bounds and one name")
        kind = next(b.kind for b in bounds if isinstance(b, Value))
        first = as_value(bounds[0] if len(bounds) == 2 else 0, kind)
        last = as_value(bounds[-1], kind)
        counter = builder.variable(kind)
        builder.set_variable(counter, first)
        again, body, step, done = (builder.fresh(s) for s in ("loop", "body", "step", "done"))
        builder.start(again)
        now = builder.get_variable(kind, counter)
        builder.branch(now < last, body, done)
        builder.start(body)
        self.names.pop(node.target.id, None)
        self._bind(node.target.id, now)
        self.loops.append(Loop(step, done, unrolled=False))
        self._nested(node.body)
        self.loops.pop()
        builder.start(step)
        builder.set_variable(counter, builder.get_variable(kind, counter) + 1)
        builder.jump(again)
        builder.start(done)

    def _do_Break(self, node: ast.Break) -> None:
        self.builder.jump(self.loops[-1].done)

    def _do_Continue(self, node: ast.Continue) -> None:
        self.builder.jump(self.loops[-1].again)

    def _do_Return(self, node: ast.Return) -> None:
        value = self._eval(node.value) if node.value else None
        builder = self.builder
        if builder.terminated:
            return
        if self.is_native:
            result = None if self.result_kind is None else as_value(value, self.result_kind)
            builder.ret(result)
            return
        if builder.depth == self.entry_depth and not self.end:
            self.result = value
            return
        self._return_through_slots(value)

    def _return_through_slots(self, value: Any) -> None:
        builder = self.builder
        first = not self.end
        if first:
            self.end = builder.fresh("end")
        if value is not None:
            parts = list(value) if isinstance(value, tuple) else [value]
            if self.result_slots is None:
                if not all(isinstance(p, Value) for p in parts):
                    raise TypeError("a conditional return needs typed values")
                self.result_slots = [Variable(p.kind, builder.variable(p.kind)) for p in parts]
                self.result_is_tuple = isinstance(value, tuple)
            for variable, part in zip(self.result_slots, parts, strict=True):
                builder.set_variable(variable.slot, as_value(part, variable.kind))
        builder.jump(self.end)

    # --- expressions ---------------------------------------------------------

    def _eval(self, node: ast.expr) -> Any:
        method = getattr(self, "_on_" + type(node).__name__, None)
        if method is None:
            raise TypeError(f"{type(node).__name__} is not in the native language")
        return method(node)

    def _on_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def _on_Name(self, node: ast.Name) -> Any:
        name = node.id
        if name in self.names:
            known = self.names[name]
            if isinstance(known, Variable):
                return self.builder.get_variable(known.kind, known.slot)
            return known
        nonlocals = _closure(self.function)
        if name in nonlocals:
            return nonlocals[name]
        scope = self.function.__globals__
        if name in scope:
            return scope[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        raise TypeError(f"{name} is not defined (on every path)")

    def _on_BinOp(self, node: ast.BinOp) -> Any:
        return _BINARY[type(node.op)](self._eval(node.left), self._eval(node.right))

    def _on_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self._eval(node.operand)
        if isinstance(node.op, ast.Not):
            return truth(value) ^ True if isinstance(value, Value) else not value
        if isinstance(node.op, ast.Invert):
            return ~value
        return -value if isinstance(node.op, ast.USub) else value

    def _on_Compare(self, node: ast.Compare) -> Any:
        left = self._eval(node.left)
        result: Any = _MISSING
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._eval(right_node)
            part = _COMPARE[type(op)](left, right)
            if result is _MISSING:
                result = part
            elif isinstance(result, Value) or isinstance(part, Value):
                result = result & part
            else:
                result = result and part
            left = right
        return result

    def _on_BoolOp(self, node: ast.BoolOp) -> Any:
        return self._logic(node.values, isinstance(node.op, ast.And))

    def _logic(self, nodes: Sequence[ast.expr], conjunction: bool) -> Any:
        first = self._eval(nodes[0])
        if len(nodes) == 1:
            return first
        if not isinstance(first, Value):
            if bool(first) is not conjunction:
                return first
            return self._logic(nodes[1:], conjunction)
        builder = self.builder
        first = truth(first)
        slot = builder.variable(Bool())
        builder.set_variable(slot, first)
        more, done = builder.fresh("more"), builder.fresh("done")
        if conjunction:
            builder.branch(first, more, done)
        else:
            builder.branch(first, done, more)
        builder.start(more)
        builder.depth += 1
        rest = self._logic(nodes[1:], conjunction)
        builder.depth -= 1
        if not builder.terminated:
            known = truth(rest) if isinstance(rest, Value) else as_value(bool(rest), Bool())
            builder.set_variable(slot, known)
        builder.start(done)
        return builder.get_variable(Bool(), slot)

    def _on_IfExp(self, node: ast.IfExp) -> Any:
        condition = self._eval(node.test)
        if not isinstance(condition, Value):
            return self._eval(node.body if condition else node.orelse)
        builder = self.builder
        yes, no, done = (builder.fresh(s) for s in ("yes", "no", "done"))
        builder.branch(truth(condition), yes, no)
        builder.start(yes)
        builder.depth += 1
        first = self._eval(node.body)
        kind = first.kind if isinstance(first, Value) else None
        mark = len(builder.body)
        builder.terminated = True
        builder.start(no)
        second = self._eval(node.orelse)
        builder.depth -= 1
        if kind is None:
            if not isinstance(second, Value):
                raise TypeError("a run-time conditional needs a typed value")
            kind = second.kind
        slot = builder.variable(kind)
        builder.set_variable(slot, as_value(second, kind))
        builder.jump(done)
        name = llvm_type(kind)
        builder.body[mark:mark] = [
            f" store {name} {as_value(first, kind).ref}, ptr {slot}",
            f" br label %{done}",
        ]
        builder.start(done)
        return builder.get_variable(kind, slot)

    def _on_Call(self, node: ast.Call) -> Any:
        target = self._eval(node.func)
        args: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                args.extend(self._eval(argument.value))
            else:
                args.append(self._eval(argument))
        kwargs = {k.arg: self._eval(k.value) for k in node.keywords if k.arg}
        if isinstance(target, NativeFunction):
            return self.builder.call(target, args)
        if isinstance(target, StagedFunction):
            return self.builder.inline(target, args, kwargs)
        return target(*args, **kwargs)

    def _on_Attribute(self, node: ast.Attribute) -> Any:
        return getattr(self._eval(node.value), node.attr)

    def _on_Subscript(self, node: ast.Subscript) -> Any:
        return self._eval(node.value)[self._eval(node.slice)]

    def _on_Slice(self, node: ast.Slice) -> Any:
        parts = (node.lower, node.upper, node.step)
        return slice(*(self._eval(p) if p else None for p in parts))

    def _on_Tuple(self, node: ast.Tuple) -> Any:
        return tuple(self._eval(e) for e in node.elts)

    def _on_List(self, node: ast.List) -> Any:
        return [self._eval(e) for e in node.elts]

    def _on_Dict(self, node: ast.Dict) -> Any:
        pairs = zip(node.keys, node.values, strict=True)
        return {self._eval(k): self._eval(v) for k, v in pairs if k is not None}

    def _on_ListComp(self, node: ast.ListComp) -> Any:
        if len(node.generators) != 1 or node.generators[0].ifs:
            raise TypeError("a list comprehension has one for and no if")
        generator = node.generators[0]
        results = []
        for item in self._eval(generator.iter):
            self._assign(generator.target, item)
            results.append(self._eval(node.elt))
        return results

    def _on_Set(self, node: ast.Set) -> Any:
        return {self._eval(e) for e in node.elts}

    def _on_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts = []
        for value in node.values:
            if isinstance(value, ast.Constant):
                parts.append(str(value.value))
            elif isinstance(value, ast.FormattedValue):
                form = self._eval(value.format_spec) if value.format_spec else ""
                parts.append(format(self._eval(value.value), form))
        return "".join(parts)


def truth(value: Value) -> Value:
    """Return `value` as a boolean (an integer is true when it is not zero)."""
    if isinstance(value.kind, StructType):
        raise TypeError("a pointer has no truth")
    found: Value = convert(Bool(), value)
    return found


@functools.cache
def _assigned(function: Callable[..., Any]) -> frozenset[str]:
    tree, _, _ = _syntax(function)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return frozenset(names)
