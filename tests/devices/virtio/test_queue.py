"""Virtqueues: what a driver may do works, and what it may not is a QueueError."""

import struct

import pytest

from ringzero.core.memory import GuestMemory
from ringzero.devices.virtio.queue import QueueError, Virtqueue
from ringzero.errors import StateError
from ringzero.records import replace

DESC, AVAIL, USED, DATA = 0x1000, 0x2000, 0x3000, 0x8000
SIZE = 8


@pytest.fixture
def memory():
    return GuestMemory([(0, 0x10000)])


@pytest.fixture
def queue(memory):
    queue = Virtqueue(memory, 16)
    queue.size, queue.descriptors, queue.available, queue.used = SIZE, DESC, AVAIL, USED
    queue.enable(event_idx=False)
    return queue


def describe(memory, number, address, length, flags=0, following=0, table=DESC):
    memory.write(table + 16 * number, struct.pack("<QIHH", address, length, flags, following))


def offer(memory, *heads, start=0):
    for place, head in enumerate(heads, start):
        memory.write_int(AVAIL + 4 + 2 * (place % SIZE), 2, head)
    memory.write_int(AVAIL + 2, 2, start + len(heads))


def test_chain_of_two(queue, memory):
    memory.write(DATA, b"request")
    describe(memory, 3, DATA, 7, 1, 5)
    describe(memory, 5, DATA + 0x100, 16, 2)
    offer(memory, 3)
    chain = queue.pop()
    assert chain.gather(100) == b"request" and chain.gather(3) == b"req"
    assert (chain.readable_size, chain.writable_size) == (7, 16)
    assert chain.scatter(b"answer") == 6
    queue.push(chain, 6)
    assert memory.read(DATA + 0x100, 6) == b"answer"
    assert memory.read(USED, 12) == struct.pack("<HHII", 0, 1, 3, 6)
    assert queue.pop() is None


def test_indices_wrap(queue, memory):
    for head in range(8):
        describe(memory, head, DATA, 1)
    for turn in range(0x10000 + 20):
        memory.write_int(AVAIL + 4 + 2 * (turn % SIZE), 2, turn % SIZE)
        memory.write_int(AVAIL + 2, 2, turn + 1)
        chain = queue.pop()
        assert chain.head == turn % SIZE
        queue.push(chain, 0)
    assert memory.read_int(USED + 2, 2) == 20


def test_indirect(queue, memory):
    describe(memory, 0, 0x5000, 48, 4)
    describe(memory, 0, DATA, 4, 1, 1, table=0x5000)
    describe(memory, 1, DATA + 16, 4, 1 | 2, 2, table=0x5000)
    describe(memory, 2, DATA + 32, 4, 2, table=0x5000)
    offer(memory, 0)
    chain = queue.pop()
    assert (len(chain.readable), len(chain.writable)) == (1, 2)


def test_whole_pages_side_by_side_are_one_buffer(queue, memory):
    pieces = [
        *[(DATA, 16, 0), (DATA + 0x1000, 0x1000, 0), (DATA + 0x2000, 0x1000, 0)],
        *[(DATA + 0x3000, 0x1000, 2), (DATA + 0x4000, 0x1000, 2)],
        # Neither what is no page, nor what lies elsewhere.
        *[(DATA + 0x5000, 1, 2), (DATA + 0x5001, 0x1000, 2), (DATA, 0x1000, 2)],
    ]
    describe(memory, 0, 0x5000, 16 * len(pieces), 4)
    for number, (address, length, flags) in enumerate(pieces):
        more = number < len(pieces) - 1
        describe(memory, number, address, length, flags | more, number + 1, table=0x5000)
    offer(memory, 0)
    chain = queue.pop()
    assert list(map(len, chain.readable)) == [16, 0x2000]
    assert list(map(len, chain.writable)) == [0x2000, 1, 0x1000, 0x1000]
    assert chain.addresses == [DATA + 0x3000, DATA + 0x5000, DATA + 0x5001, DATA]
    # Of pages that end beyond RAM none is taken.
    describe(memory, 1, 0xF000, 0x1000, 1, 2, table=0x5000)
    describe(memory, 2, 0x10000, 0x1000, 0, 0, table=0x5000)
    offer(memory, 0, start=1)
    with pytest.raises(QueueError, match="not in RAM"):
        queue.pop()


def bad(memory, name):
    match name:
        case "head out of range":
            offer(memory, SIZE)
            return
        case "next out of range":
            describe(memory, 0, DATA, 4, 1, SIZE)
        case "loop":
            describe(memory, 0, DATA, 4, 1, 1)
            describe(memory, 1, DATA, 4, 1, 0)
        case "self loop":
            describe(memory, 0, DATA, 4, 1, 0)
        case "not RAM":
            describe(memory, 0, 0x10000, 4)
        case "across the end of RAM":
            describe(memory, 0, 0xFFFF, 2)
        case "address wraps":
            describe(memory, 0, (1 << 64) - 1, 4)
        case "length 4 GiB":
            describe(memory, 0, DATA, 0xFFFFFFFF)
        case "readable after writable":
            describe(memory, 0, DATA, 4, 3, 1)
            describe(memory, 1, DATA, 4, 0)
        case "indirect of odd length":
            describe(memory, 0, 0x5000, 17, 4)
        case "indirect and empty":
            describe(memory, 0, 0x5000, 0, 4)
        case "indirect and next":
            describe(memory, 0, 0x5000, 16, 5, 1)
        case "indirect in indirect":
            describe(memory, 0, 0x5000, 16, 4)
            describe(memory, 0, 0x5000, 16, 4, table=0x5000)
        case "indirect not RAM":
            describe(memory, 0, 0x10000, 16, 4)
        case "indirect loop":
            describe(memory, 0, 0x5000, 32, 4)
            describe(memory, 0, DATA, 1, 1, 1, table=0x5000)
            describe(memory, 1, DATA, 1, 1, 0, table=0x5000)
        case "indirect next out of range":
            describe(memory, 0, 0x5000, 32, 4)
            describe(memory, 0, DATA, 1, 1, 2, table=0x5000)
        case "available index ran away":
            memory.write_int(AVAIL + 2, 2, SIZE + 1)
            return
    offer(memory, 0)


@pytest.mark.parametrize(
    "name",
    [
        "head out of range", "next out of range", "loop", "self loop", "not RAM",
        "across the end of RAM", "address wraps", "length 4 GiB", "readable after writable",
        "indirect of odd length", "indirect and empty", "indirect and next",
        "indirect in indirect", "indirect not RAM", "indirect loop",
        "indirect next out of range", "available index ran away",
    ],
)  # fmt: skip
def test_hostile_chain(queue, memory, name):
    bad(memory, name)
    with pytest.raises(QueueError):
        queue.pop()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0), ("size", 3), ("size", 32), ("descriptors", 0xFFF0), ("descriptors", 0x1008),
        ("available", 0x2001), ("used", 0x3002), ("available", 0xFFFE), ("used", 1 << 63),
    ],
)  # fmt: skip
def test_bad_setup(memory, field, value):
    queue = Virtqueue(memory, 16)
    queue.size, queue.descriptors, queue.available, queue.used = SIZE, DESC, AVAIL, USED
    setattr(queue, field, value)
    with pytest.raises(QueueError):
        queue.enable(event_idx=False)


def test_interrupt_suppression_by_flag(queue, memory):
    describe(memory, 0, DATA, 1)
    offer(memory, 0, 0)
    queue.push(queue.pop(), 0)
    assert queue.should_interrupt()
    assert not queue.should_interrupt(), "nothing new"
    memory.write_int(AVAIL, 2, 1)
    queue.push(queue.pop(), 0)
    assert not queue.should_interrupt()


def test_event_index(memory):
    queue = Virtqueue(memory, 16)
    queue.size, queue.descriptors, queue.available, queue.used = SIZE, DESC, AVAIL, USED
    queue.enable(event_idx=True)
    describe(memory, 0, DATA, 1)
    offer(memory, 0, 0, 0)
    memory.write_int(AVAIL + 4 + 2 * SIZE, 2, 1)  # tell me after the second one
    queue.push(queue.pop(), 0)
    assert not queue.should_interrupt()
    queue.push(queue.pop(), 0)
    assert queue.should_interrupt()
    queue.push(queue.pop(), 0)
    assert not queue.should_interrupt()
    assert not queue.rearm()
    assert memory.read_int(USED + 4 + 8 * SIZE, 2) == 3
    offer(memory, 0, start=3)
    assert queue.rearm(), "a request came in between"


def test_writes_are_reported(queue, memory):
    seen = []
    memory.listen(lambda gpa, count: seen.append((gpa, count)))
    memory.write(DESC, struct.pack("<QIHH", DATA, 100, 2, 0))
    offer(memory, 0)
    seen.clear()
    chain = queue.pop()
    chain.scatter(b"x" * 10)
    queue.push(chain, 10)
    assert (DATA, 10) in seen
    assert any(gpa <= USED + 4 < gpa + count for gpa, count in seen)


def test_buffers_side_by_side_are_marked_as_one(queue, memory):
    # Three in a row, of which the last is not filled; then one elsewhere.
    places = [(DATA, 0x100), (DATA + 0x100, 0x100), (DATA + 0x200, 0x100), (DATA + 0x1000, 0x40)]
    for number, (address, length) in enumerate(places):
        memory.write(DESC + 16 * number, struct.pack("<QIHH", address, length, 2, 0))
    offer(memory, *range(len(places)))
    seen = []
    memory.listen(lambda gpa, count: seen.append((gpa, count)))
    chains = [queue.pop() for _ in places]
    queue.push_all(zip(chains, (0x100, 0x100, 0x80, 0x40), strict=True))
    assert seen[:2] == [(DATA, 0x280), (DATA + 0x1000, 0x40)] and seen[2][0] == USED


def copy_of(queue, memory, event_idx):
    """Return a queue that goes on where another one stands, in a copy of its memory, and that."""
    image = memory.host.freeze()
    theirs = GuestMemory([(0, 0x10000)], image)
    image.close()
    copy = Virtqueue(theirs, 16)
    copy.restore(queue.save(), event_idx)
    return copy, theirs


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_restored_queue_that_nobody_uses_takes_no_memory(memory, event_idx):
    queue = Virtqueue(memory, 16)
    queue.size, queue.descriptors, queue.available, queue.used = SIZE, DESC, AVAIL, USED
    queue.enable(event_idx)
    describe(memory, 0, DATA, 1)
    offer(memory, 0)
    for chain in queue.requests():
        queue.push(chain, 0)
    queue.should_interrupt()
    copy, theirs = copy_of(queue, memory, event_idx)
    assert copy.is_at_rest()
    assert copy.save() == queue.save()
    assert copy.ready
    if event_idx:
        # Its driver is asked for what it was asked for before.
        assert not copy.rearm()
        assert theirs.host.changed() == []
    offer(theirs, 0, start=1)
    assert copy.pop().head == 0


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("what", ["offered", "used", "not asked", "drained"])
def test_a_restored_queue_with_something_to_do_is_not_at_rest(memory, event_idx, what):
    queue = Virtqueue(memory, 16)
    queue.size, queue.descriptors, queue.available, queue.used = SIZE, DESC, AVAIL, USED
    queue.enable(event_idx)
    describe(memory, 0, DATA, 1)
    if what == "offered":
        offer(memory, 0)
    elif what == "used":
        offer(memory, 0)
        for chain in queue.requests():
            queue.push(chain, 0)
    elif what == "not asked":
        memory.write_int(USED + 4 + 8 * SIZE, 2, 7)
        memory.write_int(USED, 2, 1)
    copy, _ = copy_of(queue, memory, event_idx)
    if what == "drained":
        assert copy.is_at_rest()
        copy.drain = object()
    assert not copy.is_at_rest()


@pytest.mark.parametrize(("field", "value"), [("used", 0x3002), ("available", 0xFFFE), ("size", 3)])
def test_a_state_of_a_queue_that_cannot_be_is_refused(queue, memory, field, value):
    state = replace(queue.save(), **{field: value})
    with pytest.raises(StateError):
        Virtqueue(memory, 16).restore(state, event_idx=True)
