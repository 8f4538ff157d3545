"""The language of QEMU's guest agent: commands, and what guests print."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringzero.doors.libvirt import guestagent
from ringzero.doors.libvirt.values import FileSystem, GuestInterface, IpAddress
from ringzero.errors import InvalidValueError


def test_a_command():
    text = '{"execute": "guest-exec", "arguments": {"path": "ls", "arg": ["/"]}}'
    found = guestagent.read(text)
    assert (found.name, found.arguments) == ("guest-exec", {"path": "ls", "arg": ["/"]})
    assert guestagent.read('{"execute": "guest-ping"}').arguments == {}
    assert guestagent.answer({}) == '{"return":{}}'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no command"),
        ("[]", "no command"),
        ('{"execute": 1}', "no command"),
        ("[" * 100_000, "no command"),
        ('{"execute": "guest-fly"}', "has not been found"),
        ('{"execute": "guest-ping", "arguments": []}', "no object"),
        ('{"execute": "guest-ping", "arguments": {"x": 1}}', "'x' is unexpected"),
        ('{"execute": "guest-exec"}', "'path' is missing"),
        ('{"execute": "guest-exec", "arguments": {"path": 1}}', "type for 'path'"),
        ('{"execute": "guest-exec", "arguments": {"path": "a\\u0000b"}}', "type for 'path'"),
        ('{"execute": "guest-exec", "arguments": {"path": "a", "arg": [1]}}', "type for 'arg'"),
        ('{"execute": "guest-exec-status", "arguments": {"pid": true}}', "type for 'pid'"),
        ('{"execute": "guest-exec-status", "arguments": {"pid": 1e3}}', "type for 'pid'"),
        (
            '{"execute": "guest-exec-status", "arguments": {"pid": 9999999999999999999}}',
            "type for 'pid'",
        ),
    ],
)
def test_what_is_no_command_is_told(text, told):
    with pytest.raises(InvalidValueError, match=told):
        guestagent.read(text)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(sorted(guestagent.COMMANDS)), st.dictionaries(st.text(), _JSON) | _JSON)
def test_whatever_a_client_sends_is_a_command_or_is_refused(name, arguments):
    text = json.dumps({"execute": name, "arguments": arguments})
    try:
        found = guestagent.read(text)
    except InvalidValueError:
        return
    for key in guestagent.COMMANDS[name]:
        assert not key.endswith("*") or key[:-1] in found.arguments


@given(st.text())
def test_whatever_is_sent_is_read_or_refused(text):
    for read in (guestagent.read, guestagent.decoded):
        with contextlib.suppress(InvalidValueError):
            read(text)


@given(st.text() | st.lists(st.text(st.characters(codec="ascii")), max_size=9).map(" ".join))
def test_whatever_a_guest_prints_is_read(text):
    list(guestagent.interfaces(text))
    guestagent.release(text)
    guestagent.file_systems(text)
    guestagent.timezone(text)


@given(st.binary())
def test_bytes_come_back(data):
    assert guestagent.decoded(guestagent.encoded(data)) == data


def test_what_guests_print():
    output = (
        "lo 00:00:00:00:00:00\neth0 52:54:00:00:00:01\n"
        "1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever\n"
        "2: eth0    inet 10.0.2.15/24 brd 10.0.2.255 scope global eth0\n"
        "2: eth0    inet6 fe80::1/64 scope link\n"
    )
    loopback, wired = guestagent.interfaces(output)
    assert loopback == GuestInterface("lo", "00:00:00:00:00:00", [IpAddress(0, "127.0.0.1", 8)])
    assert wired.addresses == [IpAddress(0, "10.0.2.15", 24), IpAddress(1, "fe80::1", 64)]
    output = 'ID=debian\nNAME="Debian GNU/Linux"\n\nLinux\n6.1.0\n#1 SMP\nx86_64\n'
    assert guestagent.release(output) == {
        "id": "debian",
        "name": "Debian GNU/Linux",
        "kernel-release": "6.1.0",
        "kernel-version": "#1 SMP",
        "machine": "x86_64",
    }
    # A guest without the file.
    assert guestagent.release("\nLinux\n6.1.0\n#1\nx86_64\n")["machine"] == "x86_64"
    mounts = "proc /proc proc rw 0 0\n/dev/vda1 /my\\040disk ext4 rw 0 0\n/dev/vdb\n"
    assert guestagent.file_systems(mounts) == [FileSystem("/my disk", "vda1", "ext4", [])]
    assert guestagent.timezone("CET +0130\n") == ("CET", 5400)
    assert guestagent.timezone("EST -0500\n") == ("EST", -18000)
    assert guestagent.timezone("\n") == ("", 0)
