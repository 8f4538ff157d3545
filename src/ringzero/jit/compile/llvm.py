"""The thin layer over llvmlite: target machines, optimisation, objects, linking."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import llvmlite.binding as llvm

from ringzero.digest import blake2b
from ringzero.errors import EngineError, InvalidValueError
from ringzero.host.files import open_regular
from ringzero.host.private import is_trusted
from ringzero.records import record
from ringzero.settings import CACHE_DIR

# What compiles fast code for straight lines, as stencils and handlers are, in a quarter of the
# time of LLVM's own sequence (`speed_level` 1), whose passes on loops and calls find nothing here.
STRAIGHT = ("sroa", "simplify_cfg", "instruction_combine", "simplify_cfg", "instruction_combine")
# The same for code that inlines functions and loads again what it has stored.
INLINED = (
    "always_inliner",
    *STRAIGHT[:4],
    "new_gvn",
    "dead_store_elimination",
    *STRAIGHT[2:4],
)
# Passes of the code generator that find nothing in such code either, or make it longer by copies
# of its ends: a fifth of its time, as each takes some for every function (llc --help-hidden).
_NEEDLESS = (
    "disable-block-placement",
    "disable-constant-hoisting",
    "disable-early-ifcvt",
    "disable-early-taildup",
    "disable-expand-reductions",
    "disable-lsr",
    "disable-mergeicmps",
    "disable-partial-libcall-inlining",
    "disable-post-ra",
    "disable-postra-machine-licm",
    "disable-select-optimize",
    "disable-ssc",
    "disable-tail-duplicate",
)


@functools.cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


@record
class Target:
    """The host CPUs that code is compiled for.

    `cpu` and `features` are LLVM's words for them. Of a portable target, `needs` are the
    features without which a host cannot run the code; the target `host` is this very CPU.
    """

    name: str
    cpu: str
    features: str = ""
    needs: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What code for this target depends on."""
        return f"{self.cpu} {self.features}".strip()

    def runs_here(self) -> bool:
        """Whether this host's CPU has all that the code uses."""
        _initialize()
        features = llvm.get_host_cpu_features()
        return all(features.get(name, False) for name in self.needs)


# Features of the levels of x86-64 (psABI, "Micro-Architecture Levels"), by LLVM's names.
_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
# The best first.
PORTABLE = (
    Target("x86-64-v3", "x86-64-v3", needs=_V3),
    Target("x86-64-v2", "x86-64-v2", needs=_V2),
)
TARGETS = ("host", *(target.name for target in PORTABLE))


@functools.cache
def host_target() -> Target:
    """Return the target that is this host's CPU."""
    _initialize()
    return Target("host", llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())


def target_named(name: str) -> Target:
    """Return the target of a name in TARGETS; raises InvalidValueError."""
    if name == "host":
        return host_target()
    for target in PORTABLE:
        if target.name == name:
            return target
    raise InvalidValueError(
        f"no target is called {name!r}", hint=f"there are: {', '.join(TARGETS)}"
    )


def llvm_version() -> str:
    """Return the version of LLVM that llvmlite brings."""
    return ".".join(str(n) for n in llvm.llvm_version_info)


def host_identity() -> str:
    """Return what code for this host depends on: LLVM's version, CPU name and features."""
    return f"{llvm_version()} {host_target().identity}"


@functools.cache
def target_machine(level: int, relocation: str = "pic", target: Target | None = None) -> Any:
    """Return a target machine, for this host by default; `static` relocation is for stencils."""
    _initialize()
    target = target or host_target()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=level,
        reloc=relocation,
        codemodel="small",
        jit=False,
        cpu=target.cpu,
        features=target.features,
    )


def _optimise(module: Any, machine: Any, level: int, passes: tuple[str, ...]) -> None:
    """Run `passes`, or LLVM's own sequence for `level` where none are given."""
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_unrolling = False
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    if passes:
        manager = llvm.create_new_module_pass_manager()
        for name in passes:
            getattr(manager, f"add_{name}_pass")()
    else:
        manager = builder.getModulePassManager()
    manager.run(module, builder)


@contextlib.contextmanager
def _code_generation(*, straight: bool) -> Iterator[None]:
    """Leave needless passes out while straight code is generated; options are the process's."""
    _choose_passes(straight)
    try:
        yield
    finally:
        _choose_passes(False)


def _choose_passes(straight: bool) -> None:
    for name in _NEEDLESS:
        llvm.set_option("ringzero", f"-{name}={str(straight).lower()}")


def compile_object(
    ir: str,
    *,
    level: int = 2,
    relocation: str = "pic",
    passes: tuple[str, ...] = (),
    target: Target | None = None,
) -> bytes:
    """Compile the IR text of one module to an ELF object; raises EngineError."""
    machine = target_machine(level, relocation, target)
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as cause:
        raise EngineError("generated code is not valid", detail=str(cause)) from cause
    _optimise(module, machine, level, passes)
    with _code_generation(straight=bool(passes)):
        return bytes(machine.emit_object(module))


def cached_object(
    ir: str,
    *,
    level: int = 2,
    relocation: str = "pic",
    passes: tuple[str, ...] = (),
    target: Target | None = None,
) -> bytes:
    """As `compile_object`, but keep objects in the cache by the content of their IR.

    So a change of one instruction compiles one unit anew and not the engine.
    """
    digest = blake2b(digest_size=16)
    needless = _NEEDLESS if passes else ()
    identity = (target or host_target()).identity
    for part in (llvm_version(), identity, str(level), relocation, *passes, *needless, ir):
        digest.update(part.encode() + b"\0")
    path = CACHE_DIR.get() / "objects" / digest.hexdigest()
    with contextlib.suppress(OSError), os.fdopen(open_regular(path), "rb") as file:
        if is_trusted(os.fstat(file.fileno())):
            return file.read()
    data = compile_object(ir, level=level, relocation=relocation, passes=passes, target=target)
    # Without room for it, the next build takes longer, and that is all.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.chmod(0o644)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return data


def assembly(ir: str, *, level: int = 2, relocation: str = "pic") -> str:
    """Return the host assembly of a module, for looking at."""
    machine = target_machine(level, relocation)
    module = llvm.parse_assembly(ir)
    _optimise(module, machine, level, ())
    return str(machine.emit_assembly(module))


class Library:
    """Compiled objects linked into this process; `symbols` are those that will be asked for."""

    def __init__(self, objects: Iterable[bytes], symbols: Iterable[str]) -> None:
        _initialize()
        self._jit = llvm.create_lljit_compiler(target_machine(2))
        builder = llvm.JITLibraryBuilder().add_current_process()
        for data in objects:
            builder.add_object_img(data)
        names = list(symbols)
        for name in names:
            builder.export_symbol(name)
        try:
            self._tracker = builder.link(self._jit, "engine")
        except RuntimeError as cause:
            raise EngineError("the compiled engine does not link", detail=str(cause)) from cause
        self._addresses = {name: int(self._tracker[name]) for name in names}

    def address(self, name: str) -> int:
        """Return the host address of a function or global; raises EngineError."""
        try:
            return self._addresses[name]
        except KeyError:
            raise EngineError(f"the compiled engine does not export {name}") from None
