"""RINGZERO_DEBUG reveals what the translator made; --stats counts what happened."""

import json
import re

import pytest

from tests.boot.process import check, run
from tests.boot.test_bad_input import ENTRY, kernel_of

pytestmark = pytest.mark.engine
# mov ecx, 1000; L: add eax, ecx; dec ecx; jne L; mov al, 0xfe; out 0x64, al; hlt
LOOP = bytes.fromhex("b9e8030000 01c8 ffc9 75fa b0fe e664 f4")
REBOOT = 3


def reveal(tmp_path, code=LOOP, **settings):
    environment = {f"RINGZERO_DEBUG{name}": value for name, value in settings.items()}
    done = run("--kernel", kernel_of(tmp_path, code), env=environment)
    assert done.returncode == REBOOT, done.stderr.decode()
    return done.stderr.decode()


def test_blocks(tmp_path):
    """The guest's bytes, decoded as a disassembler decodes them."""
    capstone = pytest.importorskip("capstone")
    text = reveal(tmp_path, _="", **{"": "2"})
    assert f"block at linear {ENTRY + 5:#x}, physical {ENTRY + 5:#x} (64-bit" in text
    rows = re.findall(r"^  ([0-9a-f]{16})  ((?:[0-9a-f]{2} )*[0-9a-f]{2}) +(.*?) +; ", text, re.M)
    assert rows
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    for address, raw, ours in rows:
        (theirs,) = engine.disasm(bytes.fromhex(raw), int(address, 16))
        offset = int(address, 16) - ENTRY
        assert LOOP[offset : offset + theirs.size] == bytes.fromhex(raw)
        # The loop's jump goes by the mnemonic of its condition.
        assert ours == f"{theirs.mnemonic} {theirs.op_str}".strip()
    assert "add eax, ecx" in text
    assert "define" not in text
    assert "host code" not in text


def test_ir_and_host_code(tmp_path):
    text = reveal(tmp_path, **{"": "3"})
    (key,) = set(re.findall(r"add eax, ecx +; stencil (\d+)", text))
    assert f"; stencil {key}" in text
    assert "define preserve_nonecc void" in text
    assert "host code" not in text
    text = reveal(tmp_path, **{"": "4"})
    match = re.search(r"host code at 0x([0-9a-f]+), (\d+) bytes\n((?:    .*\n)+)", text)
    assert match
    assert int(match[1], 16) % 16 == 0
    assert 0 < int(match[2]) < 4096
    assert len(match[3].splitlines()) > 5


def test_filters(tmp_path):
    assert "block at" not in reveal(tmp_path, _AT="2000000-2fffffff", **{"": "2"})
    assert "block at" not in reveal(tmp_path, _AT=f"{ENTRY + 100:x}", **{"": "2"})
    assert "add eax, ecx" in reveal(tmp_path, _AT=f"{ENTRY + 7:x}", **{"": "2"})
    text = reveal(tmp_path, _COUNT="1", **{"": "2"})
    assert text.count("block at") == 1
    assert "RINGZERO_DEBUG_COUNT=1" in text
    assert "block at" not in reveal(tmp_path, _COUNT="0", **{"": "2"})


def test_directory(tmp_path):
    place = tmp_path / "revealed"
    assert "block at" not in reveal(tmp_path, _DIR=str(place), **{"": "3"})
    names = sorted(path.name for path in place.iterdir())
    assert f"{ENTRY + 5:016x}-6.txt" in names
    assert any(re.fullmatch(r"stencil-\d+\.ll", name) for name in names)


@pytest.mark.parametrize("name", ["", "_AT", "_COUNT"])
def test_nonsense(tmp_path, name):
    settings = {"RINGZERO_DEBUG": "2"} | {f"RINGZERO_DEBUG{name}": "much"}
    done = run("--kernel", kernel_of(tmp_path, LOOP), env=settings)
    check(done, 2, f"RINGZERO_DEBUG{name}='much' makes no sense")


# --- statistics ------------------------------------------------------------------------


def statistics(tmp_path, code):
    done = run("--kernel", kernel_of(tmp_path, code), "--stats", "--json")
    assert done.returncode == REBOOT
    return json.loads(done.stderr)["stats"]


@pytest.mark.parametrize(
    ("code", "count"),
    [
        (LOOP, 1 + 3 * 1000 + 2),
        # The same with the way out in front: dec ecx; je +4; add eax, ecx; jmp L.
        (bytes.fromhex("b9e8030000 ffc9 7404 01c8 ebf8 b0fe e664 f4"), 1 + 4 * 1000 - 2 + 2),
    ],
)
def test_instructions_and_translations(tmp_path, code, count):
    stats = statistics(tmp_path, code)
    # All before HLT, which is not reached: OUT ends the machine.
    assert stats["cpu0"]["instructions"] == pytest.approx(count, abs=3)
    assert 1 <= stats["cpu0"]["translator_blocks"] <= 3
    assert stats["devices"]["i8042"] == {"reads": 0, "writes": 1}


def test_exits_of_devices(tmp_path):
    # mov edx, 0x3f8; mov ecx, 300; L: mov al, 'x'; out dx, al; dec ecx; jne L;
    # mov edx, 0x3fb; in al, dx (seven times); mov al, 0xfe; out 0x64, al
    code = bytes.fromhex(
        "baf8030000 b92c010000 b078 ee ffc9 75f9 bafb030000" + "ec" * 7 + "b0fee664"
    )
    stats = statistics(tmp_path, code)
    assert stats["devices"]["serial"] == {"reads": 7, "writes": 300}
    # What is written to the line leaves native code in batches.
    assert 8 <= stats["cpu0"]["exits"] < 308


def test_tlb_misses(tmp_path):
    # mov edi, 0x2000000; mov ecx, N; L: mov [rdi], ecx; add edi, 4096; dec ecx; jne L; reboot
    def misses(pages):
        count = pages.to_bytes(4, "little").hex()
        code = f"bf00000002 b9{count} 890f 81c700100000 ffc9 75f4 b0fee664"
        return statistics(tmp_path, bytes.fromhex(code))["cpu0"]["tlb_misses"]

    assert misses(2000) - misses(1000) == pytest.approx(1000, abs=20)
