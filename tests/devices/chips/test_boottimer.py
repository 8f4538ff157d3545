from ringzero.devices.chips.boottimer import BOOTED, BootTimer


def test_only_one_byte_means_it():
    heard = []
    timer = BootTimer(lambda: heard.append(1))
    for offset, width, value in ((1, 1, BOOTED), (0, 4, BOOTED), (0, 1, 0), (0, 8, BOOTED)):
        timer.write(offset, width, value)
    assert heard == []
    timer.write(0, 1, BOOTED)
    timer.write(0, 1, BOOTED)
    assert heard == [1, 1]
    assert timer.read(0, 4) == 0
