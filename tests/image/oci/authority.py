"""An authority of one's own and what it signs, made by openssl."""

import subprocess

from tests.image.fs.made import tool

_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def openssl(*words):
    done = subprocess.run([tool("openssl"), *map(str, words)], capture_output=True)
    assert done.returncode == 0, done.stderr


def make_authority(place, *names):
    """Fill `place`: ca.crt, ca.key, and server.* (for `names`) and client.* that it has signed."""
    openssl("req", "-x509", *_NEW, "-keyout", place / "ca.key", "-out", place / "ca.crt",
            "-subj", "/CN=own", "-days", "30")  # fmt: skip
    hosts = ",".join(f"DNS:{name}" for name in names)
    for name, more in (
        ("server", f"subjectAltName=DNS:localhost,IP:127.0.0.1{',' if hosts else ''}{hosts}"),
        ("client", "extendedKeyUsage=clientAuth"),
    ):
        extra = place / f"{name}.ext"
        extra.write_text(more)
        openssl("req", *_NEW, "-keyout", place / f"{name}.key", "-out", place / f"{name}.csr",
                "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", place / f"{name}.csr", "-CA", place / "ca.crt", "-CAkey",
                place / "ca.key", "-CAcreateserial", "-extfile", extra, "-days", "30",
                "-out", place / f"{name}.crt")  # fmt: skip
    return place
