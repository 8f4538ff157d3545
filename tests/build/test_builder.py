"""Whole builds, in a guest: what the image holds is read from its root file system."""

import os
import stat

import pytest

from ringzero.build import base
from ringzero.build.builder import build
from ringzero.build.job import EPOCH, Options
from ringzero.build.origin import Context
from ringzero.build.view import View
from ringzero.build.vmfile.parse import parse
from ringzero.build.worker import Worker
from ringzero.errors import (
    BuildError,
    ConfigError,
    GuestImageError,
    InvalidValueError,
    MissingFileError,
)
from ringzero.image.oci.blobs import Blobs
from ringzero.image.oci.reference import parse_reference

pytestmark = pytest.mark.boot


class Steps:
    """Hears of steps."""

    def __init__(self):
        self.cached, self.text, self.output = [], [], b""

    def begins(self, number, count, text):
        self.text.append(text)

    def says(self, number, data):
        self.output += data

    def ends(self, number, seconds, *, cached):
        self.cached.append(cached)

    def done(self):
        """Return the steps that were done, and not known."""
        return [t for t, c in zip(self.text, self.cached, strict=True) if not c]


def made(text, context, cache, **options):
    steps = Steps()
    file = parse(text)
    image = build(file, Context(context), Options(**options), cache=cache, listener=steps)
    return image, steps


def modes(image, *paths):
    with View(image.root) as view:
        nodes = [view.find(path.encode()) for path in paths]
        return [node and stat.S_IMODE(node.mode) for node in nodes]


def content(image, path):
    with View(image.root) as view:
        return view.read(path)


WHOLE = """\
ARG WORD=first
FROM micro AS one
ARG WORD
ENV A=1
WORKDIR /srv/app
RUN echo $WORD $A >said; mkdir -p /d/e; echo k >/d/e/k; echo j >/d/j; chmod 600 /d/j
RUN rm -r /d/e /bin/vi /d/j; mkdir /d/e; echo new >/d/e/n; ln /d/e/n /d/e/hard
COPY --chown=5:6 f /srv/
USER nobody
RUN id -u >/tmp/me; ! touch /root/x
FROM scratch
COPY --from=one /srv /srv
COPY --from=one /d /d
CMD ["/srv/app/said"]
"""


def test_a_build_and_the_next_ones(cache, tmp_path, monkeypatch):
    (tmp_path / "f").write_text("v1")
    text = WHOLE + "LABEL a=b\n"
    name = parse_reference("test/whole:1")
    image, steps = made(text, tmp_path, cache, names=(name,), target="one")
    assert content(image, "/srv/app/said") == b"first 1\n"
    assert content(image, "/srv/f") == b"v1"
    assert content(image, "/tmp/me") == b"65534\n"
    assert content(image, "/d/e/hard") == b"new\n"
    assert modes(image, "/d/e/k", "/d/j", "/bin/vi", "/root/x") == [None] * 4
    assert image.user == "nobody"
    assert image.workdir == "/srv/app"
    assert steps.cached.count(False) > 4

    again, steps = made(text, tmp_path, cache, target="one")
    assert again.digest == image.digest
    assert steps.done() == ["FROM micro AS one"]

    # Another last step goes on from the machine that the one before left.
    monkeypatch.setattr(Worker, "boot", lambda *_, **__: pytest.fail("the base boots"))
    other = text.replace("id -u >/tmp/me", "id -u >/tmp/other")
    changed, steps = made(other, tmp_path, cache, target="one")
    assert steps.done()[1:] == ["RUN id -u >/tmp/other; ! touch /root/x"]
    assert content(changed, "/tmp/other") == b"65534\n"
    assert modes(changed, "/tmp/me") == [None]

    # What no step copies changes nothing; what one copies changes from there.
    (tmp_path / "unused").write_text("x")
    assert made(text, tmp_path, cache, target="one")[0].digest == image.digest
    (tmp_path / "f").write_text("v2")
    changed, steps = made(text, tmp_path, cache, target="one")
    assert [line.split()[0] for line in steps.done()] == ["FROM", "COPY", "RUN"]
    assert content(changed, "/srv/f") == b"v2"

    # And the last stage, which needs no machine.
    last, _ = made(text, tmp_path, cache)
    assert content(last, "/srv/app/said") == b"first 1\n"
    assert content(last, "/d/e/hard") == b"new\n"
    assert modes(last, "/bin/busybox") == [None]
    assert last.cmd == ("/srv/app/said",)


def test_two_clean_caches_give_the_same(cache, tmp_path):
    (tmp_path / "f").write_text("v1")
    one, _ = made(WHOLE, tmp_path, cache)
    (cache / "build").rename(cache / "elsewhere")
    two, steps = made(WHOLE, tmp_path, cache)
    assert one.digest == two.digest
    assert len([step for step in steps.done() if step.startswith("RUN")]) == 3


def test_a_step_that_fails_is_told_and_not_kept(cache, tmp_path):
    text = "FROM micro\nRUN echo fine\nRUN echo bad >&2; exit 7\n"
    with pytest.raises(BuildError, match="ended with status 7"):
        made(text, tmp_path, cache)
    _, steps = made(text.replace("exit 7", "true"), tmp_path, cache)
    assert steps.cached == [False, True, False]
    assert b"bad" in steps.output


def test_scripts_arrays_shells_and_networks(cache, tmp_path):
    text = """\
FROM micro
RUN <<EOF
set -e
x=1
echo $x >a
EOF
RUN cat <<'ONE' >/b && cat <<TWO >>/b
$x
ONE
$((1+1))
TWO
RUN <<EOF
#!/bin/busybox sh
echo $0 >/c
EOF
RUN ["sh", "-c", "echo $0 >/d", "$HOME; as it is"]
SHELL ["/bin/busybox", "sh", "-ec"]
RUN false; true || true
"""
    with pytest.raises(BuildError, match="false; true"):
        made(text, tmp_path, cache)
    image, _ = made(text.rpartition("RUN")[0], tmp_path, cache)
    assert content(image, "/a") == b"1\n"
    assert content(image, "/b") == b"$x\n2\n"
    assert content(image, "/c").startswith(b"/tmp/")
    assert content(image, "/d") == b"$HOME; as it is\n"
    net = "FROM micro\nRUN --network=none ip link >/net\n"
    assert b"eth0" not in content(made(net, tmp_path, cache)[0], "/net")


def test_faults_before_any_work(cache, tmp_path):
    with pytest.raises(ConfigError) as caught:
        made(
            "FROM micro\nCMD a\n",
            tmp_path,
            cache,
            target="nothing",
            arguments={"NO": "1"},
        )
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigError, match=r"Vmfile:2:.*b: give it"):
        made("FROM scratch\nWORKDIR /${b:?give it}\n", tmp_path, cache)
    with pytest.raises(MissingFileError, match=r"Vmfile:2:6: .*\n +COPY nothing /\n +\^{9}$"):
        made("FROM scratch\nCOPY nothing /\n", tmp_path, cache)
    with pytest.raises(GuestImageError):
        made("FROM oci:/nowhere/at/all\n", tmp_path, cache)


MOUNTS = """\
FROM micro AS other
RUN echo other >/o
FROM micro
RUN --mount=target=/src --mount=from=other,source=/o,target=/deep/er/o,rw \\
    cat /src/f /deep/er/o >/said; ! echo x >/src/new
RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t,size=1M \\
    echo x >>/c/count; cp /c/count /counted; echo y >/t/y
RUN --mount=type=secret,id=key,required --mount=type=secret,id=env,env=TOLD \\
    wc -c </run/secrets/key >/size; echo ${#TOLD} >>/size
RUN echo after >/after
"""


def test_mounts_are_there_for_one_step(cache, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    (place / "f").write_text("file\n")
    secrets = {"key": b"s3cr3t-of-a-test", "env": b"t0ld-to-one-step"}
    image, _ = made(MOUNTS, place, cache, secrets=secrets)
    assert content(image, "/said") == b"file\nother\n"
    assert content(image, "/counted") == b"x\n"
    assert content(image, "/size") == b"16\n16\n"
    assert modes(image, "/run/secrets", "/c/count", "/t/y", "/src", "/deep") == [None] * 5
    # Nowhere in what is kept, machines' memory included.
    for path in [*(cache / "build").rglob("*"), *(cache / "blobs").rglob("*")]:
        data = path.read_bytes() if path.is_file() else b""
        assert not any(secret in data for secret in secrets.values()), path

    again, _ = made(MOUNTS, place, cache, secrets=secrets, use_cache=False)
    assert content(again, "/counted") == b"x\nx\n"

    with pytest.raises(InvalidValueError, match="secret 'key' is not there"):
        made(MOUNTS, place, cache)


def test_a_damaged_snapshot_boots_the_base(cache, tmp_path):
    text = "FROM micro\nRUN echo 1 >/a\nRUN echo 2 >/b\n"
    made(text, tmp_path, cache)
    for path in (cache / "build/machines").rglob("*"):
        if path.is_file() and path.stat().st_size > 4096:
            os.truncate(path, 100)
    image, _ = made(text.replace("echo 2", "echo 3"), tmp_path, cache)
    assert (content(image, "/a"), content(image, "/b")) == (b"1\n", b"3\n")


def test_a_layer_that_is_gone_is_made_again(cache, tmp_path):
    text = "FROM micro\nRUN echo 1 >/a\n"
    before, _ = made(text, tmp_path, cache)
    for path in (cache / "build/layers").iterdir():
        path.unlink()
    again, steps = made(text, tmp_path, cache)
    assert again.digest == before.digest
    assert "RUN echo 1 >/a" in steps.done()


def test_every_layer_and_document_is_a_blob(cache, tmp_path):
    image, _ = made("FROM micro\nRUN echo 1 >/a\n", tmp_path, cache)
    blobs = Blobs(cache)
    for digest in (image.digest, image.config, *image.layers):
        assert blobs.path(digest).exists()
    assert EPOCH == 315532800
    assert image.created == "1980-01-01T00:00:00Z"


def test_the_machine_that_an_image_asks_for(cache, tmp_path):
    text = (
        'FROM scratch AS base\nMEMORY 1G\nCPUS 2\nCMD ["/old"]\nSERVICE a /bin/a b\n'
        'FROM base\nMEMORY 256M\nUSER 7\nSERVICE --restart=always --after=a c ["/c"]\n'
        "READY --interval=1s --timeout=1m30s tcp:80\n"
    )
    image, _ = made(text, tmp_path, cache, target="base")
    assert image.machine.plain() == {
        "Memory": 1 << 30,
        "CPUs": 2,
        "Services": [
            {
                "Name": "a",
                "Command": ["/bin/sh", "-c", "/bin/a b"],
                "Restart": "on-failure",
                "User": "",
                "After": [],
            }
        ],
    }
    assert image.cmd == ("/old",)
    with pytest.raises(GuestImageError, match=r"Vmfile:9:9: SERVICE c comes after 'b'"):
        made(text.replace("--after=a", "--after=b"), tmp_path, cache)


def test_addresses_are_added(cache, tmp_path, served):
    url, checksum = served(b"some data")
    text = f"FROM scratch\nADD --checksum={checksum} {url}/n /a/\nADD --chmod=755 {url}/n /b\n"
    image, _ = made(text, tmp_path, cache)
    assert content(image, "/a/n") == content(image, "/b") == b"some data"
    assert modes(image, "/a/n", "/b") == [0o600, 0o755]
    again, steps = made(text, tmp_path, cache)
    assert again.digest == image.digest
    assert steps.done() == ["FROM scratch"]
    with pytest.raises(GuestImageError, match=r"Vmfile:2:5: .* has the checksum"):
        made(text.replace(checksum, f"sha256:{'0' * 64}"), tmp_path, cache)
    with pytest.raises(InvalidValueError, match="names no file"):
        made(f"FROM scratch\nADD {url}/ /a/\n", tmp_path, cache)


def test_who_runs_a_step_is_looked_up_once(cache, tmp_path, monkeypatch):
    (tmp_path / "f").write_text("f")
    text = "FROM micro\nWORKDIR /srv\nCOPY f .\nUSER nobody\nRUN id -u >/tmp/me\n"
    image, _ = made(text, tmp_path, cache)
    monkeypatch.setattr(View, "_take_base", lambda *_: pytest.fail("the tree is walked"))
    monkeypatch.setattr(base, "_own_files", lambda _: pytest.fail("the base is read"))
    again, steps = made(text, tmp_path, cache)
    assert again.digest == image.digest
    assert steps.done() == ["FROM micro"]
