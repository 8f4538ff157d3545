"""An unmodified virsh over TLS, with certificates of the test's own."""

import shutil
import subprocess

import pytest

from ringzero.doors.listeners import Certificate
from tests.control.fake import start
from tests.doors.libvirt.test_virsh import pytestmark
from tests.doors.serving import Served

__all__ = ["pytestmark"]


def openssl(*words):
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A certificate authority, a server's and a client's certificates, and a stranger's."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    where = tmp_path_factory.mktemp("pki")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        openssl(
            *("req", "-x509", *new, "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", where / f"{name}.key", "-out", where / f"{name}.pem"),
        )
    for name, signer, use in (
        ("server", "ca", "serverAuth"),
        ("client", "ca", "clientAuth"),
        ("stranger", "other", "clientAuth"),
    ):
        more = where / f"{name}.cnf"
        more.write_text(f"subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={use}\n")
        request = where / f"{name}.csr"
        openssl(
            *("req", *new, "-subj", f"/CN={name}"),
            *("-keyout", where / f"{name}.key", "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-days", "2", "-extfile", more),
            *("-CA", where / f"{signer}.pem", "-CAkey", where / f"{signer}.key"),
            *("-CAcreateserial", "-out", where / f"{name}.pem"),
        )
    for name in ("client", "stranger"):
        # What libvirt's `pkipath` has to hold.
        folder = where / f"of-{name}"
        folder.mkdir()
        shutil.copy(where / "ca.pem", folder / "cacert.pem")
        shutil.copy(where / f"{name}.pem", folder / "clientcert.pem")
        shutil.copy(where / f"{name}.key", folder / "clientkey.pem")
    return where


@pytest.fixture
def virsh(fakes, root, tmp_path, keys):
    shown = Certificate(keys / "server.pem", keys / "server.key", keys / "ca.pem")
    with Served(tmp_path / "serve", shown, libvirt=["127.0.0.1:0"]) as served:
        port = served.path.rpartition(":")[2]

        def virsh(name, *words):
            uri = f"ringzero+tls://localhost:{port}/system?pkipath={keys / f'of-{name}'}"
            return subprocess.run(
                ["virsh", "-c", uri, *words], capture_output=True, text=True, timeout=30
            )

        yield virsh


def test_who_has_a_certificate_comes_in(virsh):
    start("web")
    done = virsh("client", "list", "--all", "--name")
    assert done.returncode == 0 and done.stdout.strip() == "web", done
    assert virsh("client", "suspend", "web").returncode == 0
    assert virsh("client", "domstate", "web").stdout.strip() == "paused"


def test_who_has_another_ones_does_not(virsh):
    start("web")
    done = virsh("stranger", "list", "--all", "--name")
    assert done.returncode and "web" not in done.stdout, done
    assert virsh("client", "list", "--name").stdout.strip() == "web"
