import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.control.machine.hub import SCROLLBACK, Hub
from ringzero.control.machine.logfile import LogFile, previous
from ringzero.errors import ConflictError


class Screen:
    def __init__(self, room=10**9):
        self.data = b""
        self.room = room

    def write(self, data):
        if len(data) > self.room:
            return False
        self.room -= len(data)
        self.data += data
        return True


def test_everybody_sees_the_same_and_what_was_before():
    typed = []
    hub = Hub(typed.append)
    hub.feed(b"boot ")
    first, second, late = Screen(), Screen(), Screen()
    one = hub.attach(first)
    hub.attach(second, scrollback=False)
    hub.feed(b"login: ")
    watcher = hub.attach(late, writes=False)
    assert (first.data, second.data, late.data) == (b"boot login: ", b"login: ", b"boot login: ")
    one.type(b"root")
    watcher.type(b"rm -rf /")
    assert typed == [b"root"]
    one.detach()
    one.detach()
    hub.feed(b"x")
    assert first.data == b"boot login: "
    assert hub.watchers == 2


def test_one_alone_types():
    typed = []
    hub = Hub(typed.append)
    only = hub.attach(Screen(), only=True)
    with pytest.raises(ConflictError):
        hub.attach(Screen())
    hub.attach(Screen(), writes=False)
    only.detach()
    other = hub.attach(Screen())
    with pytest.raises(ConflictError):
        hub.attach(Screen(), only=True)
    other.type(b"x")
    assert typed == [b"x"]


def test_who_does_not_read_loses_output_and_is_told():
    hub = Hub(lambda data: None)
    slow, quick = Screen(room=4), Screen()
    hub.attach(slow)
    hub.attach(quick)
    for word in (b"1234", b"lost", b"too"):
        hub.feed(word)
    slow.room = 1000
    hub.feed(b"end")
    assert quick.data == b"1234losttooend"
    assert slow.data == b"1234\r\n[ringzero: 7 bytes skipped]\r\nend"


@given(st.lists(st.integers(0, SCROLLBACK), max_size=12))
def test_scrollback_is_the_end_of_everything_and_bounded(sizes):
    hub = Hub(lambda data: None)
    chunks = [bytes((number,)) * size for number, size in enumerate(sizes)]
    for chunk in chunks:
        hub.feed(chunk)
    screen = Screen()
    hub.attach(screen)
    everything = b"".join(chunks)
    assert len(screen.data) <= SCROLLBACK
    assert screen.data == everything[-SCROLLBACK:]
    assert len(hub._scrollback) <= 2 * SCROLLBACK


def test_a_log_keeps_its_end_in_two_files(tmp_path):
    path = tmp_path / "log"
    log = LogFile(path, limit=100)
    for number in range(50):
        log.write(f"line {number:04}\n".encode())
    log.close()
    log.write(b"dropped")
    kept = previous(path).read_bytes() + path.read_bytes()
    lines = kept.decode().splitlines()
    assert lines == [f"line {n:04}" for n in range(50 - len(lines), 50)]
    assert 100 < len(kept) <= 200
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_hurts_nobody(tmp_path):
    log = LogFile(tmp_path / "missing" / "log")
    log.write(b"x")
    log.close()


def test_who_attaches_hears_where_the_past_ends():
    hub, told = Hub(lambda data: None), []
    hub.feed(b"before")
    screen = Screen()
    hub.attach(screen, caught_up=lambda: told.append(screen.data))
    hub.feed(b" after")
    assert told == [b"before"]
    assert screen.data == b"before after"
