"""The wire: what goes out comes in again, however it is cut; bad frames are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.errors import ProtocolError
from ringzero.vm.gdb.packets import ACK, INTERRUPT, NAK, PACKET_SIZE, Decoder, encode


def test_the_checksum_is_the_sum_of_the_bytes():
    # The manual's own example of an empty answer, and one that gdb 13 sends.
    assert encode(b"") == b"$#00" and encode(b"OK") == b"$OK#9a"
    assert encode(b"vMustReplyEmpty") == b"$vMustReplyEmpty#3a"


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(1, 7))
def test_packets_come_back_however_they_are_cut(packets, step):
    wire = b"+".join(encode(packet) for packet in packets)
    decoder, found = Decoder(), []
    for at in range(0, len(wire), step):
        found += decoder.feed(wire[at : at + step])
    assert [packet[1:] for packet in found if packet != ACK] == packets


def test_single_bytes_and_noise():
    found = list(Decoder().feed(b"+-\x03noise$g#67"))
    assert found == [ACK, NAK, INTERRUPT, b"$g"]


@pytest.mark.parametrize("wire", [b"$g#68", b"$g#zz"])
def test_a_wrong_checksum_is_told(wire):
    assert list(Decoder().feed(wire + b"$g#67")) == [b"!", b"$g"]


def test_a_packet_without_end_is_refused():
    decoder = Decoder()
    with pytest.raises(ProtocolError):
        list(decoder.feed(b"$" + b"a" * (2 * PACKET_SIZE + 5)))


@given(st.binary(max_size=300))
def test_random_bytes_fuzz(data):
    for packet in Decoder().feed(data):
        assert packet[:1] in b"+-\x03$!"
