"""What cloud-init says on a serial line, as 22.4.2 on Debian 12 said it."""

from ringzero.vm.guest.cloudinit import CloudInitWatch

FINE = (
    b"[   15.1] cloud-init[402]: Cloud-init v. 22.4.2 running 'modules:final' at Mon, 30 Nov\r\n"
    b"[   15.2] cloud-init[402]: hello-from-runcmd\r\n"
    b"[   15.3] cloud-init[402]: Cloud-init v. 22.4.2 finished at Mon, 30 Nov 2026 10:00:00 +0000. "
    b"Datasource DataSourceNoCloud [seed=/dev/vdb][dsmode=net].  Up 15.3 seconds\r\n"
)
WRONG = (
    b"[   14.0] cloud-init[402]: 2026-11-30 10:00:00,123 - util.py[WARNING]: Failed running "
    b"/var/lib/cloud/instance/scripts/runcmd [1]\r\n"
    b"[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mcloud-config.service\x1b[0m.\r\n"
)


def test_the_end_is_heard_in_pieces_of_any_size():
    for step in (1, 7, 4096):
        watch = CloudInitWatch()
        for at in range(0, len(FINE), step):
            watch.feed(FINE[at : at + step])
        assert watch.wait(0)
        assert watch.problems == []


def test_faults_are_kept():
    watch = CloudInitWatch()
    watch.feed(WRONG)
    assert not watch.finished
    assert watch.problems == [
        "util.py[WARNING]: Failed running /var/lib/cloud/instance/scripts/runcmd [1]",
        "Failed to start cloud-config.service.",
    ]


def test_a_guest_that_writes_for_ever_costs_little():
    watch = CloudInitWatch()
    for _ in range(50):
        watch.feed(b"x" * 10_000)
    watch.feed((b"cloud-init[1]: Traceback\n" + b"cloud-init[1]: ERROR: no\n") * 1000)
    assert len(watch.problems) == 20
    assert not watch.finished
