"""What is read of a Linux guest's last words."""

from ringzero.vm.guest import linux

BOOT = [f"[    0.{n:06}] something about device {n}" for n in range(60)]
OOPS = [
    "[    1.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "[    1.000002] #PF: supervisor read access in kernel mode",
    *[f"[    1.0001{n:02}] R{n:02}: 0000000000000000" for n in range(40)],
    "[    1.000200] Kernel panic - not syncing: Fatal exception",
    "[    1.000201] ---[ end Kernel panic - not syncing: Fatal exception ]---",
]


def text(*parts):
    return "\r\n".join(line for part in parts for line in part) + "\r\n"


def test_last_words_begin_with_the_cause():
    lines = linux.last_words(text(BOOT, OOPS)).splitlines()
    assert "NULL pointer" in lines[0]
    assert len(lines) == linux.LAST_LINES


def test_a_panic_without_a_fault_begins_with_itself():
    said = text(BOOT, OOPS[-2:])
    assert linux.last_words(said).startswith("[    1.000200] Kernel panic")
    assert linux.panicked(said)
    assert linux.panic_cause(said) == "Fatal exception"


def test_without_a_panic_it_is_the_end():
    assert linux.last_words(text(BOOT, [""])).splitlines() == BOOT[-20:]
    assert linux.panic_cause(text(BOOT)) == ""
    assert linux.last_words("") == ""


def test_an_orderly_reboot():
    assert linux.restarted(text(BOOT, ["[    2.0] reboot: Restarting system"]))
    assert not linux.restarted(text(["[    2.0] reboot: Restarting system"], BOOT))


def test_the_last_line_is_fit_for_a_person():
    said = b"[  OK  ] Reached \x1b[0;1;39mBasic\x1b[0m.\r\n   Starting \x1b[1mssh\x1b[0m...\r\n\r\n"
    assert linux.last_line(said) == "Starting ssh..."
    assert linux.last_line(b"") == ""
    assert linux.last_line(b"\xff\x00\x07 x\n") == "\ufffd?? x"
    assert len(linux.last_line(b"x" * 5000)) == 100
