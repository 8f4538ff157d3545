"""The thin layer over llvmlite: target machines, optimisation, objects, linking."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterable
from typing import Any

import llvmlite.binding as llvm

from ringzero.errors import EngineError
from ringzero.settings import CACHE_DIR


@functools.cache
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()


def host_identity() -> str:
    """Return what generated code depends on: LLVM's version, host CPU name and features."""
    _initialize()
    version = ".".join(str(n) for n in llvm.llvm_version_info)
    return f"{version} {llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"


@functools.cache
def target_machine(level: int, relocation: str = "pic") -> Any:
    """Return a target machine for this host; `static` relocation is for stencils."""
    _initialize()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=level,
        reloc=relocation,
        codemodel="small",
        jit=False,
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
    )


def compile_object(ir: str, *, level: int = 2, relocation: str = "pic") -> bytes:
    """Compile the IR text of one module to an ELF object; raises EngineError."""
    machine = target_machine(level, relocation)
    try:
        module = llvm.parse_assembly(ir)
        module.verify()
    except RuntimeError as cause:
        raise EngineError("generated code is not valid", detail=str(cause)) from cause
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    tuning.loop_unrolling = False
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def cached_object(ir: str, *, level: int = 2, relocation: str = "pic") -> bytes:
    """As `compile_object`, but keep objects in the cache by the content of their IR.

    So a change of one instruction compiles one unit anew and not the engine.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (host_identity(), str(level), relocation, ir):
        digest.update(part.encode())
    path = CACHE_DIR.get() / "objects" / digest.hexdigest()
    try:
        return path.read_bytes()
    except OSError:
        data = compile_object(ir, level=level, relocation=relocation)
    # Without room for it, the next build takes longer, and that is all.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(data)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return data


def assembly(ir: str, *, level: int = 2, relocation: str = "pic") -> str:
    """Return the host assembly of a module, for looking at."""
    machine = target_machine(level, relocation)
    module = llvm.parse_assembly(ir)
    tuning = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
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
