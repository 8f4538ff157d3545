"""docs/add-an-instruction.md is true: a module and its name in MODULES are all that there is to do.

The toy is added to a copy of the package, and a child process runs it there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ringzero

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
MODULE, LIST = "isa/x86/insn/toy.py", "isa/x86/table/instructions.py"
# An opcode that no processor has.
TOY = '''
"""A toy: the destination becomes itself times the source, plus one."""

from ringzero.isa.x86.table.forms import instruction
from ringzero.isa.x86.table.operation import Operation


@instruction("0F 38 FF /r : Gv Ev", name="toy"{attributes})
def toy(m: Operation) -> None:
    """TOY."""
    m.write(0, m.read(0) * m.read(1) + 1)
'''
# toy rax, rbx; toy eax, [rbx]; toy r9w, r10w
CODE = "480f38ffc3 0f38ff03 66450f38ffca"
RUN = f"""
import json
from tests.oracle.model import CODE_BASE, DATA_BASE, Case, State
from tests.oracle.soft import interpreter, translator
gpr = [6, 0, 0, DATA_BASE, 0, 0, 0, 0, 0, 0xABCD0005, 7, 0, 0, 0, 0, 0]
state = State.build(gpr, CODE_BASE, 0x202)
case = Case(bytes.fromhex("{CODE}"), state, ((DATA_BASE, (3).to_bytes(8, "little")),), 64)
found = [make().run([case])[0].state.gpr for make in (interpreter, translator)]
print(json.dumps([[gpr[0], gpr[9]] for gpr in found]))
"""
LOWER = """
import json
from ringzero.isa.x86.table.decoder import build_tables
from ringzero.isa.x86.table.instructions import all_forms
from ringzero.jit.assembly import compile_stencils
from ringzero.jit.compile.module import Module
from ringzero.jit.stencil import WEIGHTS
from ringzero.jit.x86.catalogue import Catalogue, define_key
build_tables(all_forms())
catalogue = Catalogue()
number, key = next((n, k) for n, k in enumerate(catalogue.keys) if k.form.mnemonic == "toy")
module = Module("toy")
module.define(WEIGHTS)
known = define_key(module, number, key)
print(json.dumps([len(compile_stencils(module)), known.flags.defines]))
"""


@pytest.fixture
def run_with_toy(tmp_path):
    def run(script, attributes=""):
        package = tmp_path / "ringzero"
        shutil.copytree(
            Path(ringzero.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
        )
        (package / MODULE).write_text(TOY.format(attributes=attributes))
        before, names, rest = (package / LIST).read_text().partition("MODULES = (\n")
        assert names
        listed = rest.replace("\n)\n", '\n    "insn.toy",\n)\n', 1)
        (package / LIST).write_text(before + names + listed)
        path = os.pathsep.join((str(tmp_path), str(ROOT)))
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.timeout(600)
def test_a_toy_runs_in_both_run_loops(run_with_toy):
    """RAX is 6 times the address of the data plus 1, then EAX that times 3 plus 1; R9W is 36."""
    from tests.oracle.model import DATA_BASE

    rax = (6 * DATA_BASE + 1) * 3 + 1 & 0xFFFFFFFF
    expected = [rax, 0xABCD0000 | 5 * 7 + 1]
    assert run_with_toy(RUN) == [expected, expected]


def test_a_toy_marked_fast_becomes_stencils(run_with_toy):
    stencils, defines_flags = run_with_toy(LOWER, ", fast=True")
    assert stencils == 1
    assert not defines_flags
