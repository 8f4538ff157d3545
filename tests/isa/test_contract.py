"""What every architecture is; and that nothing above the engines knows which ones there are."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ringzero
from ringzero.core.memory import GuestMemory
from ringzero.core.state import from_tree, to_tree
from ringzero.errors import InvalidValueError
from ringzero.isa.x86.architecture import X86_64
from tests.toy.architecture import TOY

ROOT = Path(ringzero.__file__).parent
HERTZ = 10**9

# ---- every architecture -------------------------------------------------------------

every = pytest.mark.parametrize("isa", [X86_64, TOY], ids=lambda isa: isa.name)


@every
def test_registers_are_read_and_written(isa):
    state = isa.state_type()
    assert len(set(isa.registers)) == len(isa.registers)
    for number, name in enumerate(isa.registers):
        changed = isa.write_register(state, name, number + 1)
        assert isa.read_register(changed, name) == number + 1
        others = [n for n in isa.registers if n != name]
        assert all(isa.read_register(changed, n) == isa.read_register(state, n) for n in others)
        for wrong in (-1, 1 << 64):
            with pytest.raises(InvalidValueError, match=name):
                isa.write_register(state, name, wrong)
    with pytest.raises(KeyError):
        isa.read_register(state, "no such register")
    with pytest.raises(KeyError):
        isa.write_register(state, "no such register", 0)


@every
def test_a_state_is_plain_data(isa):
    state = isa.state_type()
    assert from_tree(isa.state_type, to_tree(state), "cpu") == state


@every
@given(ticks=st.integers(0, 1 << 66))
def test_the_counter_goes_on_and_nothing_else(isa, ticks):
    state = isa.state_type()
    moved = isa.advance(state, ticks)
    assert all(isa.read_register(moved, n) == isa.read_register(state, n) for n in isa.registers)
    assert isa.advance(moved, -ticks % (1 << 64)) == state


@every
def test_offline_and_started(isa):
    state = isa.state_type()
    waiting = isa.with_offline(state, True)
    assert isa.is_offline(waiting) and not isa.is_offline(state)
    assert isa.with_offline(waiting, False) == state
    before = isa.advance(waiting, 12345)
    begun = isa.started(before, 8, 0)
    assert not isa.is_offline(begun)
    # The counter goes on.
    assert isa.advance(isa.started(waiting, 8, 0), 12345) == begun


@every
def test_models_of_processors(isa):
    usual = isa.identify(isa.default_model, cpus=2, counter_hz=HERTZ, bounds=None)
    assert usual.architecture is isa and usual.features
    again = isa.identify(isa.default_model, cpus=2, counter_hz=HERTZ, bounds=None)
    assert again == usual
    with pytest.raises(InvalidValueError, match="nosuch"):
        isa.identify("nosuch", cpus=1, counter_hz=HERTZ, bounds=None)


@every
def test_a_state_is_described_wherever_its_code_is(isa):
    memory = GuestMemory([(0, 1 << 20)])
    state = isa.state_type()
    for address in (0, (1 << 20) - 1, 1 << 40, (1 << 64) - 1):
        counter = "pc" if isa is TOY else "rip"
        text = isa.describe(isa.write_register(state, counter, address), memory)
        assert f"{address:x}" in text
    memory.close()


# ---- nobody above the engines --------------------------------------------------------

# Parts that serve every architecture. Boards are of one each, and so are their boot protocols.
NEUTRAL = (
    "api", "board/contract.py", "board/slots", "cli", "control", "engine/contract.py",
    "engine/exits.py", "engine/info.py", "engine/select.py", "engine/soft/contract.py",
    "isa/contract.py", "isa/execution.py", "isa/caches.py", "jit/compile",
    "jit/entry.py", "net", "vm",
)  # fmt: skip
# What says of which architecture a line is: modules, registers, mechanisms of x86.
WORDS = re.compile(
    r"isa\.x86|jit\.x86|engine\.x86|(?<!\\)\bx86|\bcpuid|\bmsrs?\b|\bl?apics?\b|\b(rip|rax|rsp|rflags|cr[0-8])\b"
    r"|\btsc|\b(INIT|STARTUP|SIPI)\b",
    re.IGNORECASE,
)
# Lines that may, each with its reason.
ALLOWED = {
    ("cli/verbs/run.py", "CPU model: "): "names of models, for people",
    ("cli/verbs/engine.py", "x86-64-v"): "levels of host CPUs, for people",
    ("jit/compile/llvm.py", "x86-64-v"): "levels of host CPUs",
    ("vm/state.py", '"tsc_hz"'): "as older snapshots call the counter",
}


def code_lines(path):
    """Yield the lines of a file but comments; docstrings may give examples."""
    quoted = False
    for line in path.read_text().splitlines():
        text = line.strip()
        quotes = text.count('"""')
        if not quoted and not quotes and not text.startswith("#"):
            yield line.partition("  # ")[0]
        quoted ^= quotes % 2 == 1


def test_nothing_above_the_engines_knows_an_architecture():
    found = []
    for part in NEUTRAL:
        place = ROOT / part
        if not place.exists():
            continue
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for line in code_lines(path):
                allowed = any(name == file and text in line for file, text in ALLOWED)
                # What a guest's file system calls init is no signal.
                word = WORDS.search(line)
                if word and not allowed and word[0] != "init":
                    found.append(f"{name}: {line.strip()}")
    assert found == []


def test_the_check_sees_what_it_is_for(tmp_path):
    source = tmp_path / "seen.py"
    source.write_text('"""Of rip."""\n# x86\nx = cpu.rip\ny = b"\\x86"\n')
    assert [line for line in code_lines(source) if WORDS.search(line)] == ["x = cpu.rip"]
