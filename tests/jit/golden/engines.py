"""`python -m tests.jit.golden.engines PYTHON`: is the code the same that another tree generates?

PYTHON is the interpreter of the other tree's .venv. Compares the translator's tables (stencils,
holes, keys, lowerings, glue), the decoder's tables, and each unit's object. For moves that are
to change no generated code; what differs is named, and the exit code is 1.
"""

import struct
import subprocess
import sys
from pathlib import Path

from ringzero.isa.x86.table.entry import SLOTS, FormEntry
from ringzero.jit import build

# ELF-64: a section's type and flag.
_SHT_PROGBITS, _SHF_ALLOC = 1, 2

ENSURE = "from ringzero.jit import build; print(build.ensure().directory)"


def contents(directory):
    """Return an engine's files by name; a unit is known by the last part of its name."""
    found = {}
    for path in directory.iterdir():
        name = path.name.removesuffix(path.suffix).rpartition(".")[2] + path.suffix
        if path.suffix in (".o", ".bin", ".json") and path.name != "complete.json":
            found[name] = path.read_bytes()
    return found


def comparable(name, data):
    """Return what of a file is code: no names that follow the module's, no order of the units."""
    if name.endswith(".o"):
        return sections(data)
    if name != "forms.bin":
        return data
    # Handlers are numbered through all units.
    words = FormEntry.size // 8
    found = list(struct.unpack(f"<{len(data) // 8}Q", data))
    return [bool(word) if n % words < SLOTS else word for n, word in enumerate(found)]


def sections(elf):
    """Return the contents of an object's sections of code and constants."""
    (offset,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + n * size) for n in range(count)]
    allocated = [h for h in headers if h[1] == _SHT_PROGBITS and h[2] & _SHF_ALLOC]
    return [elf[h[4] : h[4] + h[5]] for h in allocated]


def main(python):
    other = subprocess.run([python, "-c", ENSURE], capture_output=True, text=True, check=True)
    theirs = contents(Path(other.stdout.split()[-1]))
    ours = contents(build.ensure().directory)
    same = 0
    for name in sorted(theirs | ours):
        old, new = theirs.get(name), ours.get(name)
        if None in (old, new):
            print(f"{name}: only {'there' if new is None else 'here'}")
        elif comparable(name, old) != comparable(name, new):
            print(f"{name}: differs ({len(old)} bytes there, {len(new)} here)")
        else:
            same += 1
    print(f"{same} of {len(theirs | ours)} files are the same")
    return int(same != len(theirs | ours))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
