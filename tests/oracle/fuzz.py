"""Random instructions on an engine and on the host CPU, compared.

    python -m tests.oracle.fuzz --engine unicorn --seconds 20
    python -m tests.oracle.fuzz --engine interpreter --only 'add,sh*' --seed 7

An engine is a name below or `module:callable`, the callable giving an
`Executor`. Every round makes one case of every chosen form, so that rare
instructions get as much as common ones. The same seed gives the same cases.
`--only undefined` tries encodings that are no instruction and should raise #UD;
`--only extensions`, with an engine called extended, what is beyond x86-64-v2.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from ringzero.host.processor import host_features
from tests.oracle.cases import Generator, select_forms
from tests.oracle.compare import comparable, compare, explain, vector_name
from tests.oracle.encodings import UNDEFINED, disassemble, undefined_forms
from tests.oracle.excluded import exclusion
from tests.oracle.extensions import ExtensionCases, comparable_forms
from tests.oracle.isolate import Isolated
from tests.oracle.model import (
    FIXED_FLAGS,
    FX_INIT,
    GPR_NAMES,
    UD,
    Case,
    Executor,
    Outcome,
    State,
)
from tests.oracle.native import Native

ENGINES: Final = {
    "native": "tests.oracle.native:Native",
    "unicorn": "tests.oracle.unicorn_peer:Unicorn",
    "interpreter": "tests.oracle.soft:interpreter",
    "translator": "tests.oracle.soft:translator",
    "extended-interpreter": "tests.oracle.soft:extended_interpreter",
    "extended-translator": "tests.oracle.soft:extended_translator",
}
EXTENSIONS: Final = "extensions"
"""The name that all instructions beyond x86-64-v2 go by."""
_BATCH: Final = 2048
Exclude = Callable[[Case, Outcome, Outcome], str | None]
"""Gives the reason why a difference does not count, or None."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A case on which the engine differs, and both outcomes."""

    case: Case
    expected: Outcome
    got: Outcome

    def explain(self) -> str:
        return explain(self.expected, self.got, self.case)


@dataclass(slots=True)
class Report:
    """What a run saw: counts per mnemonic, and the first mismatches of each."""

    instances: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    vectors: Counter[str] = field(default_factory=Counter)
    encodings: set[tuple[object, ...]] = field(default_factory=set)
    excluded: Counter[str] = field(default_factory=Counter)
    mismatches: list[Mismatch] = field(default_factory=list)
    exclude: Exclude = field(default=lambda *_: None)
    seconds: float = 0.0

    def add(self, case: Case, expected: Outcome, got: Outcome, keep: int) -> None:
        """Count one case; keep the first `keep` mismatches of its mnemonic."""
        name = case.mnemonic
        self.instances[name] += 1
        self.vectors[vector_name(expected.vector)] += 1
        if not comparable(expected, got) or (name == UNDEFINED and expected.vector != UD):
            self.skipped[name] += 1
        elif compare(expected, got, case):
            reason = self.exclude(case, expected, got)
            if reason is not None:
                self.excluded[reason] += 1
                return
            self.wrong[name] += 1
            if self.wrong[name] <= keep:
                self.mismatches.append(Mismatch(case, expected, got))

    def table(self, everything: bool = False) -> str:
        """Per mnemonic: instances, mismatches, skipped; only the wrong ones unless asked."""
        lines = [f"{'mnemonic':12} {'instances':>9} {'wrong':>7} {'skipped':>8}"]
        for name in sorted(self.instances, key=lambda n: (-self.wrong[n], n)):
            if everything or self.wrong[name] or self.skipped[name]:
                lines.append(
                    f"{name:12} {self.instances[name]:9} {self.wrong[name]:7}"
                    f" {self.skipped[name]:8}"
                )
        total = self.instances.total()
        lines.append(
            f"{total} instances of {len(self.instances)} mnemonics in {self.seconds:.1f} s"
            f" ({total / max(self.seconds, 1e-9):,.0f}/s), {self.wrong.total()} wrong in"
            f" {len(self.wrong)} mnemonics, {self.skipped.total()} skipped"
        )
        lines += [f"excluded {n}: {reason}" for reason, n in self.excluded.most_common()]
        lines.append("ended with: " + ", ".join(f"{k} {n}" for k, n in self.vectors.most_common()))
        return "\n".join(lines)


def case_batches(
    seed: int, only: str | None = None, modes: tuple[int, ...] = (64, 32)
) -> Iterator[list[Case]]:
    """Endless batches; every round has one case of every form, in random order."""
    rng, makers = _makers(seed, only, modes)
    if not makers:
        raise ValueError(f"no instruction is called {only!r}")
    while True:
        order = makers * max(1, _BATCH // len(makers) // 2)
        rng.shuffle(order)
        for start in range(0, len(order), _BATCH):
            yield [make() for make in order[start : start + _BATCH]]


def _makers(
    seed: int, only: str | None, modes: tuple[int, ...]
) -> tuple[random.Random, list[Callable[[], Case]]]:
    """What makes a case of each form, and what they all draw from."""
    if only == EXTENSIONS:
        cases = ExtensionCases(seed)
        forms = comparable_forms(host_features())
        return cases.rng, [partial(cases.case, form, mode) for mode in modes for form in forms]
    generator = Generator(seed)
    choose = undefined_forms if only == UNDEFINED else partial(select_forms, only=only)
    return generator.rng, [partial(generator.case, f) for mode in modes for f in choose(mode)]


def run_fuzz(
    oracle: Executor,
    engine: Executor,
    *,
    seconds: float | None = None,
    instances: int | None = None,
    seed: int = 0,
    only: str | None = None,
    modes: tuple[int, ...] = (64, 32),
    keep: int = 3,
    exclude: Exclude = lambda *_: None,
) -> Report:
    """Compare until the time is over or so many instances have run."""
    report = Report(exclude=exclude)
    started = time.monotonic()
    for batch in case_batches(seed, only, modes):
        cases = batch
        if instances is not None:
            cases = batch[: instances - report.instances.total()]
        expected = oracle.run(cases)
        for case, want, have in zip(cases, expected, engine.run(cases), strict=True):
            report.add(case, want, have, keep)
        report.seconds = time.monotonic() - started
        if seconds is not None and report.seconds >= seconds:
            break
        if instances is not None and report.instances.total() >= instances:
            break
    return report


def shrink(mismatch: Mismatch, oracle: Executor, engine: Executor) -> Mismatch:
    """The same mismatch with as many inputs as possible at their defaults."""
    best = mismatch
    goal = _signature(mismatch)
    for simplify in _simplifications(mismatch.case):
        case = simplify(best.case)
        if case == best.case:
            continue
        candidate = Mismatch(case, oracle.run([case])[0], engine.run([case])[0])
        if comparable(candidate.expected, candidate.got) and _signature(candidate) == goal:
            best = candidate
    return best


def _signature(mismatch: Mismatch) -> tuple[str, ...]:
    """Which things differ, without the values."""
    lines = compare(mismatch.expected, mismatch.got, mismatch.case)
    return tuple(sorted({line.split(":")[0].split(" at ")[0] for line in lines}))


def _simplifications(case: Case) -> Iterator[Callable[[Case], Case]]:
    def change(case: Case, state: State) -> Case:
        return Case(case.code, state, case.memory, case.mode, case.mnemonic)

    yield lambda c: change(c, c.state.replace(fxsave=FX_INIT))
    yield lambda c: change(c, c.state.replace(rflags=FIXED_FLAGS))
    for number in range(16):
        yield lambda c, n=number: change(c, c.state.replace(gpr={n: 0}))
    for patch in case.memory:
        yield lambda c, p=patch: Case(
            c.code, c.state, tuple(m for m in c.memory if m != p), c.mode, c.mnemonic
        )
    for part in range(6):
        yield lambda c, p=part: change(c, _simpler_fx(c.state, p))
    for number in range(24):
        yield lambda c, n=number: change(c, _without_vector(c.state, n))


def _simpler_fx(state: State, part: int) -> State:
    image = bytearray(state.fxsave)
    start, end = ((0, 2), (2, 4), (4, 5), (24, 28), (32, 160), (160, 416))[part]
    image[start:end] = FX_INIT[start:end]
    return state.replace(fxsave=bytes(image))


def _without_vector(state: State, number: int) -> State:
    image = bytearray(state.fxsave)
    image[32 + 16 * number : 48 + 16 * number] = bytes(16)
    return state.replace(fxsave=bytes(image))


def as_test(mismatch: Mismatch) -> str:
    """The case as a test to paste."""
    case = mismatch.case
    state = case.state
    gpr = {n: v for n, v in zip(GPR_NAMES, state.gpr, strict=True) if v}
    arguments = ["{" + ", ".join(f'"{n}": {v:#x}' for n, v in gpr.items()) + "}"]
    arguments.append(f"rip={state.rip:#x}")
    if state.rflags != FIXED_FLAGS:
        arguments.append(f"rflags={state.rflags:#x}")
    if state.fxsave != FX_INIT:
        arguments.append(f"fxsave={_fx_source(state)}")
    memory = "".join(f'({a:#x}, bytes.fromhex("{c.hex()}")), ' for a, c in case.memory)
    text = disassemble(case.code, state.rip, case.mode)
    return f"""\
def test_{case.mnemonic}_{case.code.hex()}(native: Executor, engine: Executor) -> None:
    # {text}
    case = Case(
        bytes.fromhex("{case.code.hex()}"),
        State.build({", ".join(arguments)}),
        memory=({memory.rstrip() if memory else ""}),
        mode={case.mode},
        mnemonic="{case.mnemonic}",
    )
    assert not compare(native.run([case])[0], engine.run([case])[0], case)
"""


def _fx_source(state: State) -> str:
    words = {"fcw": 0x37F, "fsw": 0, "ftw": 0, "mxcsr": 0x1F80}
    parts = [
        f"{name}={getattr(state, name):#x}"
        for name, default in words.items()
        if getattr(state, name) != default
    ]
    for name, values in (
        ("st", [state.st(i) for i in range(8)]),
        ("xmm", [state.xmm(i) for i in range(16)]),
    ):
        while values and not any(values[-1]):
            values.pop()
        if values:
            sources = (f'bytes.fromhex("{v.hex()}")' if any(v) else "b''" for v in values)
            parts.append(f"{name}=[{', '.join(sources)}]")
    return f"fx_image({', '.join(parts)})"


def load_engine(name: str) -> Callable[[], Executor]:
    """The factory behind a name in `ENGINES` or a `module:callable`."""
    module, _, attribute = ENGINES.get(name, name).partition(":")
    factory: Callable[[], Executor] = getattr(importlib.import_module(module), attribute)
    return factory


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 when something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help=f"{', '.join(ENGINES)}, or module:callable")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--instances", type=int, help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        help="mnemonics, comma separated; a * at the end matches more;"
        " `undefined` for encodings that should raise #UD",
    )
    parser.add_argument("--mode", choices=("64", "32", "both"), default="both")
    parser.add_argument("--show", type=int, default=5, help="how many reproducers to print")
    parser.add_argument("--all", action="store_true", help="list the right mnemonics too")
    parser.add_argument("--in-process", action="store_true", help="do not isolate the engine")
    options = parser.parse_args(arguments)
    if options.only == EXTENSIONS and not comparable_forms(host_features()):
        print("this host's processor has no extension to compare with")
        return 0
    factory = load_engine(options.engine)
    modes = (64, 32) if options.mode == "both" else (int(options.mode),)
    engine = factory() if options.in_process else Isolated(factory, options.engine)
    with Native() as oracle:
        report = run_fuzz(
            oracle,
            engine,
            seconds=options.seconds,
            instances=options.instances,
            seed=options.seed,
            only=options.only,
            modes=modes,
            exclude=exclusion,
        )
        shown = set()
        for mismatch in report.mismatches:
            if len(shown) == options.show:
                break
            if mismatch.case.mnemonic in shown:
                continue
            shown.add(mismatch.case.mnemonic)
            small = shrink(mismatch, oracle, engine)
            print(small.explain(), as_test(small), sep="\n\n", end="\n\n")
    print(report.table(options.all))
    if isinstance(engine, Isolated):
        engine.close()
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
