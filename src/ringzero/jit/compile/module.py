"""One LLVM module in the making: native functions, what they call, their IR as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ringzero.jit.compile.builder import FunctionBuilder, llvm_type
from ringzero.jit.compile.staging import Execution
from ringzero.native.functions import NativeFunction, StagedFunction
from ringzero.native.generation import building
from ringzero.native.values import Value


class Module:
    """Collects functions into one compilation unit.

    `home` decides which native functions are defined here; calls of others
    become external declarations, resolved when the objects are linked.
    Functions that are always inlined are defined wherever they are used.
    """

    def __init__(self, name: str, home: Iterable[str] | None = None) -> None:
        self.name = name
        self._home = None if home is None else frozenset(home)
        self._signatures: dict[str, tuple[list[Any], Any]] = {}
        self._pending: list[NativeFunction[Any, Any]] = []
        self._declarations: dict[str, str] = {}
        self._definitions: list[str] = []

    def declare(self, name: str, text: str) -> None:
        """Add a declaration (of an intrinsic, an external function, a global) once."""
        self._declarations.setdefault(name, text)

    def define(self, text: str) -> None:
        """Add the finished IR of a function."""
        self._definitions.append(text)

    def require(self, function: NativeFunction[Any, Any]) -> tuple[list[Any], Any]:
        """Return the signature of `function`, arranging for it to be defined or declared."""
        known = self._signatures.get(function.name)
        if known is not None:
            return known
        kinds, result = function.signature()
        self._signatures[function.name] = kinds, result
        owner = function.function.__module__
        if self._home is None or owner in self._home or function.inline == "always":
            self._pending.append(function)
        else:
            given = ", ".join(llvm_type(k) for k in kinds)
            convention = f"{function.convention} " if function.convention else ""
            self.declare(
                function.name,
                f"declare {convention}{llvm_type(result)} @{function.name}({given}) nounwind",
            )
        return kinds, result

    def function(
        self,
        name: str,
        parameters: list[tuple[str, Any]],
        result: Any,
        attributes: str = "nounwind",
        convention: str = "",
        linkage: str = "",
    ) -> tuple[FunctionBuilder, list[Value], Any]:
        """Begin a function by hand; call the returned finisher when its body is complete."""
        builder = FunctionBuilder(self)
        values = [Value(kind, f"%{label}") for label, kind in parameters]
        given = ", ".join(f"{llvm_type(v.kind)} {v.ref}" for v in values)

        def finish() -> None:
            head = " ".join(x for x in ("define", linkage, convention, llvm_type(result)) if x)
            lines = [f"{head} @{name}({given}) {attributes} {{", "entry:"]
            lines += builder.entry
            lines.append(" br label %body")
            lines.append("body:")
            lines += builder.body
            lines.append("}")
            self.define("\n".join(lines))

        return builder, values, finish

    def inline(
        self,
        builder: FunctionBuilder,
        function: StagedFunction[Any, Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a staged function where a builder is."""
        return Execution(builder, function.function).run(list(args), kwargs)

    def _compile(self, function: NativeFunction[Any, Any]) -> None:
        kinds, result = self._signatures[function.name]
        attributes = "nounwind"
        linkage = ""
        if function.inline == "always":
            attributes += " alwaysinline"
            linkage = "internal"
        elif function.inline == "never":
            attributes += " noinline"
        if function.noreturn:
            attributes += " noreturn cold noinline"
        names = list(function.function.__code__.co_varnames[: len(kinds)])
        builder, values, finish = self.function(
            function.name,
            list(zip([f"arg.{n}" for n in names], kinds, strict=True)),
            result,
            attributes,
            function.convention,
            linkage,
        )
        with building(builder):
            Execution(builder, function.function).run_native(
                dict(zip(names, values, strict=True)), result
            )
        finish()

    def text(self) -> str:
        """Return the module's IR, with everything that it requires compiled."""
        while self._pending:
            self._compile(self._pending.pop())
        parts = [f"; module {self.name}", *self._declarations.values(), *self._definitions]
        return "\n".join(parts) + "\n"
