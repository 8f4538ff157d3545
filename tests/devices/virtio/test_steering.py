"""Which pair of queues a flow has, for frames that a guest makes up, too."""

from hypothesis import given
from hypothesis import strategies as st

from ringzero.devices.virtio.steering import MAX_FLOWS, Steering

IPV4, IPV6, ARP = b"\x08\0", b"\x86\xdd", b"\x08\x06"


def frame(kind, number=0, back=False):
    size = 4 if kind == IPV4 else 16
    ends = [(bytes([10]) * size, number.to_bytes(2, "big")), (bytes([20]) * size, b"\0\x50")]
    (source, sport), (target, tport) = reversed(ends) if back else ends
    macs = bytes(6), bytes([2]) * 6
    first, second = reversed(macs) if back else macs
    fill = bytes(12 if kind == IPV4 else 8)
    return first + second + kind + fill + source + target + sport + tport + bytes(20)


def test_answers_go_where_their_flow_went():
    steering = Steering()
    for pair, kind in enumerate((IPV4, IPV6, ARP)):
        steering.learn(frame(kind, 7), pair)
    for pair, kind in enumerate((IPV4, IPV6, ARP)):
        assert steering.pair_of(frame(kind, 7, back=True)) == pair
    assert steering.pair_of(frame(IPV6, 8, back=True)) == 0, "of no flow that is known"
    steering.learn(frame(IPV6, 7), 3)
    assert steering.pair_of(frame(IPV6, 7, back=True)) == 3, "the last counts"


def test_what_is_remembered_is_bounded():
    steering = Steering()
    for number in range(3 * MAX_FLOWS):
        steering.learn(frame(IPV4, number), 1)
    assert len(steering) == MAX_FLOWS
    assert steering.pair_of(frame(IPV4, 3 * MAX_FLOWS - 1, back=True)) == 1


@given(st.binary(max_size=80), st.sampled_from([IPV4, IPV6, ARP, b""]), st.integers(0, 15))
def test_any_bytes(data, kind, pair):
    steering = Steering()
    head = data[:12] + kind + data[12:]
    steering.learn(head, pair)
    assert steering.pair_of(head) in (0, pair)
