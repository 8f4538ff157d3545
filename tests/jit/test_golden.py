"""What the translator makes of guest code is what the kept listings and counts say.

After a change that is meant: `python -m tests.jit.golden --update`, and read the diff.
"""

import pytest

pytest.importorskip("capstone")
from tests.jit.golden.listing import COUNTS, LISTINGS, Listings, version
from tests.jit.golden.snippets import COUNTED
from tests.jit.golden.snippets import LISTINGS as SNIPPETS

pytestmark = pytest.mark.engine
UPDATE = "if that is meant: python -m tests.jit.golden --update"
# What another version of LLVM, or another host CPU, may make of the same stencils.
TOLERANCE = 0.25


@pytest.fixture(scope="module")
def listings():
    return Listings()


def near(have, kept, head):
    """Whether a size is what was kept: exactly, where the same compiler made both."""
    return have == kept if version() in head else abs(have - kept) <= 2 + TOLERANCE * kept


@pytest.mark.parametrize("name", SNIPPETS)
def test_listing(listings, name):
    head, *kept = (LISTINGS / f"{name}.txt").read_text().splitlines()
    listing = listings.listing(*SNIPPETS[name])
    assert listing.structure() == [line for line in kept if not line.startswith("      ")], UPDATE
    assert near(len(listing.code), int(head.split()[-2]), head), UPDATE


def test_every_listing_has_its_snippet():
    assert {path.stem for path in LISTINGS.glob("*.txt")} == set(SNIPPETS)


def test_host_instructions_of_each_guest_instruction(listings):
    head, *rows = COUNTS.read_text().splitlines()
    kept = {row[:36].rstrip(): row[36:].split(maxsplit=2) for row in rows}
    assert list(kept) == [source.splitlines()[0] for source in COUNTED]
    for source in COUNTED:
        name = source.splitlines()[0]
        insns, _, stencils = listings.listing(64, source).count()
        assert stencils == kept[name][2], f"{name}: {UPDATE}"
        assert near(insns, int(kept[name][0]), head), f"{name}: {insns}; {UPDATE}"


def test_a_stencil_in_another_place_is_seen(listings):
    """The listings of two orders of the same instructions differ in structure."""
    one = listings.listing(64, "mov rax, rbx\nadd rcx, rdx").structure()
    two = listings.listing(64, "add rcx, rdx\nmov rax, rbx").structure()
    assert one != two
