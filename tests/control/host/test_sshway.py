"""ssh into a guest with a real sshd (Debian's dropbear), by the host's own client."""

import contextlib
import shutil
import subprocess
import sys

import pytest

from ringzero.config.machine import MachineConfig
from ringzero.control.host import claims, client, sshway
from ringzero.control.host.launch import launch
from ringzero.errors import HostError, NotFoundError, RingzeroError
from ringzero.host.progress import QUIET

pytestmark = [pytest.mark.boot, pytest.mark.engine]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    if shutil.which("ssh") is None:
        pytest.skip("needs ssh")
    where = tmp_path_factory.mktemp("key") / "id"
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(where)]
    subprocess.run(words, check=True)
    return where


@pytest.fixture(scope="module")
def web(tmp_path_factory, key):
    """A machine whose sshd starts late, as it does in a guest that boots."""
    from ringzero.image.micro import Recipe, ensure

    try:
        image = ensure(Recipe("sshd", packages=("dropbear-bin",)))
    except HostError as fault:
        pytest.skip(f"needs Debian packages: {fault.message}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGZERO_MACHINES_DIR", str(tmp_path_factory.mktemp("a b%c") / "m"))
        config = MachineConfig.create(
            kernel=image.kernel,
            initrd=image.initrd,
            command_line=image.command_line,
            memory="256M",
            agent=True,
            nets=["user"],
        )
        script = (
            "mkdir -p /root/.ssh /etc/dropbear; cat >/root/.ssh/authorized_keys <<.\n"
            f"{key.with_suffix('.pub').read_text()}.\n"
            "chmod 700 /root /root/.ssh; echo /bin/sh >/etc/shells; sleep 3; exec dropbear -R -F -E"
        )
        launch(claims.create("web", config, command=("sh", "-c", script)), progress=QUIET)
        machine = client.machine("web")
        yield machine
        with contextlib.suppress(RingzeroError):
            machine.remove(force=True)


def ringzero(*words, **how):
    words = [sys.executable, "-m", "ringzero", *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=90, check=False, **how)


def test_a_command_its_output_and_status(web, key):
    done = ringzero("ssh", "-i", key, "web", "echo", "out;", "cat;", "exit", "7", input="in")
    assert (done.stdout, done.returncode) == ("out\nin", 7)
    assert "waiting for the guest's sshd" in done.stderr
    assert web.ports() == []
    assert "web" in (web.directory.path / "known_hosts").read_text()
    # It is known now, and not added again.
    done = ringzero("ssh", "-i", key, "root@web", "true")
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_section_for_the_clients_configuration(web, key, tmp_path):
    done = ringzero("ssh-config", "web")
    assert done.stdout.startswith("Host web\n  User root\n")
    (tmp_path / "config").write_text(done.stdout)
    words = ["ssh", "-F", str(tmp_path / "config"), "-i", str(key), "web", "uname"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("Linux\n", 0), done.stderr


def test_a_port_that_is_published_is_used_and_stays(web, key):
    (made,) = web.publish("127.0.0.1:0:22")
    done = ringzero("ssh", "-i", key, "web", "true")
    assert done.returncode == 0, done.stderr
    assert web.ports() == [made]
    web.unpublish(str(made["port"]))


def test_another_host_key_is_refused(web, key):
    known = web.directory.path / "known_hosts"
    kept = known.read_text()
    other = key.with_suffix(".pub").read_text().split()
    known.write_text(f"web {other[0]} {other[1]}\n")
    done = ringzero("ssh", "-i", key, "-o", "HostKeyAlgorithms=ssh-ed25519", "web", "true")
    assert done.returncode == 255
    assert "verification failed" in done.stderr
    known.write_text(kept)


def test_nobody_listens(web, monkeypatch):
    monkeypatch.setenv("RINGZERO_BOOT_TIMEOUT", "1")
    done = ringzero("ssh", "-p", "2222", "web", "true")
    assert done.returncode == 255
    assert "nobody answers at port 2222" in done.stderr
    assert web.ports() == []


def test_no_machine_no_user_twice(web):
    assert ringzero("ssh", "nothing", "true").returncode == 3
    assert ringzero("ssh", "-l", "ana", "bob@web").returncode == 2
    assert ringzero("ssh", "-p", "70000", "web").returncode == 2


def test_a_machine_is_found_by_its_address_on_a_network(monkeypatch):
    networks = [{"machines": []}, {"machines": [{"name": "web", "address": "10.9.0.3"}]}]
    monkeypatch.setattr(client.Host, "networks", lambda host: networks)
    monkeypatch.setattr(client.Host, "machine", lambda host, name: name)
    assert sshway.at("10.9.0.3") == "web"
    assert sshway.at("web") is None and sshway.at("10.9") is None
    with pytest.raises(NotFoundError, match=r"10\.9\.0\.4"):
        sshway.at("10.9.0.4")
