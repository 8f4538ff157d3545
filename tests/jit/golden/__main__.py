"""`python -m tests.jit.golden [--update]`: shows what changed, or writes it."""

import argparse
import difflib
import sys

from tests.jit.golden.listing import COUNTS, LISTINGS, Listings, version
from tests.jit.golden.snippets import COUNTED
from tests.jit.golden.snippets import LISTINGS as SNIPPETS


def texts():
    """Yield (path, text) of every file."""
    listings = Listings()
    for name, (mode, source) in SNIPPETS.items():
        listing = listings.listing(mode, source)
        head = f"; {version()}, {len(listing.code)} bytes"
        yield LISTINGS / f"{name}.txt", "\n".join([head, *listing.lines()]) + "\n"
    rows = [f"; {version()}: host instructions and bytes, without budget and stubs"]
    for source in COUNTED:
        insns, size, names = listings.listing(64, source).count()
        rows.append(f"{source.splitlines()[0]:<36} {insns:>3} {size:>4}  {names}")
    yield COUNTS, "\n".join(rows) + "\n"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.jit.golden", description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the files")
    update = parser.parse_args().update
    made = dict(texts())
    changed = False
    for path, text in made.items():
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        changed = True
        if update:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        else:
            lines = (old.splitlines(), text.splitlines())
            print(*difflib.unified_diff(*lines, path.name, path.name, lineterm=""), sep="\n")
    for path in set(LISTINGS.glob("*.txt")) - set(made):
        changed = True
        print(f"{path.name} belongs to no snippet")
        if update:
            path.unlink()
    return 0 if update else int(changed)


sys.exit(main())
