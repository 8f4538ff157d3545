"""The model of page-table permissions against Unicorn, over all single entries and many pairs."""

import itertools
import os
import random

import pytest

from tests.oracle.model import LINE
from tests.oracle.paging import (
    FETCH,
    LEAF_AT,
    READ,
    WRITE,
    Controls,
    Walk,
    access_case,
    seen,
    walk,
)
from tests.oracle.unicorn_peer import (
    ACCESSED,
    DIRTY,
    HUGE,
    NX,
    PRESENT,
    USER,
    WRITABLE,
    UnicornSystem,
)

FULL = PRESENT | WRITABLE | USER
PERMISSIONS = [
    sum(bits) for bits in itertools.product((0, PRESENT), (0, WRITABLE), (0, USER), (0, NX))
]
CONTROLS = [Controls(*bits) for bits in itertools.product((False, True), repeat=5)]
ROUNDS = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.fixture(scope="module")
def system():
    return UnicornSystem()


def settings():
    """Every combination of one entry's bits, at each level, with everything else."""
    for level, bits in itertools.product(range(4), PERMISSIONS):
        entries = [FULL] * 4
        entries[level] = bits
        for controls in CONTROLS:
            for access, user in itertools.product((READ, WRITE, FETCH), (False, True)):
                yield tuple(entries), access, user, controls


def check(system, entries, access, user, controls):
    case = access_case(entries, access, user, controls)
    outcome = system.run_system(case)
    expected = walk(entries, access, user, controls)
    assert seen(outcome) == expected, (entries, access, user, controls)
    if expected.fault:
        assert outcome.cr2 == case.gpr["rbx"]
    elif entries[1] & HUGE == 0 and entries[2] & HUGE == 0:
        leaf = dict(outcome.memory).get(0x8000 & -LINE, bytes(8))
        flags = int.from_bytes(leaf[:8], "little")
        assert flags & ACCESSED
        assert bool(flags & DIRTY) == (access == WRITE)


def test_one_entry_at_a_time(system):
    chosen = random.Random(1).sample(list(settings()), min(12288, 700 * ROUNDS))
    for setting in chosen:
        check(system, *setting)


def test_pairs_of_entries_and_huge_pages(system):
    rng = random.Random(2)
    for _ in range(300 * ROUNDS):
        entries = [
            rng.choice(PERMISSIONS) | PRESENT if rng.random() < 0.5 else FULL for _ in range(4)
        ]
        if rng.random() < 0.3:
            entries[rng.choice((1, 2))] |= HUGE
        check(
            system, tuple(entries), rng.choice((READ, WRITE, FETCH)), rng.random() < 0.5,
            rng.choice(CONTROLS),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "access", "user", "controls", "expected"),
    [
        ((FULL,) * 4, WRITE, True, Controls(), Walk(False)),
        ((FULL, FULL, FULL, 0), READ, True, Controls(), Walk(True, 4)),
        ((FULL, FULL, FULL, FULL | NX), FETCH, True, Controls(), Walk(True, 0x15)),
        ((FULL, FULL, FULL | NX, FULL), READ, True, Controls(nxe=False), Walk(True, 0xD)),
        ((FULL, FULL, FULL, PRESENT), WRITE, False, Controls(), Walk(True, 3)),
        ((FULL, FULL, FULL, PRESENT), WRITE, False, Controls(write_protect=False), Walk(False)),
        ((FULL,) * 4, READ, False, Controls(smap=True), Walk(True, 1)),
        ((FULL,) * 4, READ, False, Controls(smap=True, ac=True), Walk(False)),
        ((FULL,) * 4, FETCH, False, Controls(smep=True, nxe=False), Walk(True, 0x11)),
        ((FULL | HUGE, FULL, FULL, FULL), READ, False, Controls(), Walk(True, 9)),
        ((FULL, FULL, FULL | HUGE | 0x2000, FULL), READ, False, Controls(), Walk(True, 9)),
    ],
)
def test_by_hand(entries, access, user, controls, expected):
    """Worked out from the SDM, vol. 3A sections 4.6 and 4.7."""
    assert walk(entries, access, user, controls) == expected


def test_the_page_lies_where_the_case_says():
    case = access_case((FULL,) * 4, READ, False, Controls())
    assert (LEAF_AT, b"\xf4" * 4096) in case.memory
