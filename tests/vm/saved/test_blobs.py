"""What a memory holds, without its zeroes."""

from hypothesis import given
from hypothesis import strategies as st

from ringzero.host.memory import HostMemory
from ringzero.vm.saved import blobs

SIZE = 20 * blobs.BLOCK + blobs.PAGE
writes = st.dictionaries(
    st.integers(0, SIZE - 1), st.sampled_from([b"\0", b"x", b"\0" * 40 + b"y"]), max_size=12
)


@given(writes, writes, st.booleans())
def test_pieces_are_what_is_not_zero(before, after, private):
    memory = HostMemory("test", SIZE)
    try:
        for wanted, freeze in ((before, private), (after, False)):
            for offset, data in wanted.items():
                end = min(SIZE, offset + len(data))
                memory.view[offset:end] = data[: end - offset]
            if freeze:
                memory.freeze().close()
        found = bytearray(SIZE)
        for offset, data in blobs.pieces(memory):
            assert len(data)
            found[offset : offset + len(data)] = data
            for at in range(0, len(data), blobs.BLOCK):
                assert any(data[at : at + blobs.BLOCK])
        assert found == memory.view
    finally:
        memory.close()
