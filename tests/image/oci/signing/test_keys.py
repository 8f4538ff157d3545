"""Keys, beside openssl, which has none of our code."""

import subprocess

import pytest

from ringzero.errors import HostError, InvalidValueError, MissingToolError
from ringzero.image.oci.signing import keys
from tests.image.fs.made import tool


def openssl(*words, data=None):
    return subprocess.run(
        [tool("openssl"), *map(str, words)], input=data, capture_output=True, check=True
    ).stdout


@pytest.fixture
def pair(tmp_path):
    private, public = keys.generate(None)
    (tmp_path / "a.key").write_bytes(private)
    (tmp_path / "a.pub").write_bytes(public)
    return tmp_path / "a.key", tmp_path / "a.pub"


@pytest.mark.peer
def test_openssl_takes_ours(pair, tmp_path):
    private, public = pair
    (tmp_path / "s").write_bytes(keys.load_private(private, None).sign(b"data"))
    said = openssl("dgst", "-sha256", "-verify", public, "-signature", tmp_path / "s", data=b"data")
    assert said == b"Verified OK\n"
    text = openssl("pkey", "-pubin", "-in", public, "-noout", "-text").decode()
    assert "prime256v1" in text


@pytest.mark.peer
@pytest.mark.parametrize(
    "kind",
    [
        ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
        ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        ["-algorithm", "ED25519"],
    ],
    ids=["p256", "p384", "rsa", "ed25519"],
)
def test_ours_takes_openssls(kind, tmp_path):
    private, public = tmp_path / "k", tmp_path / "p"
    openssl("genpkey", *kind, "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    (tmp_path / "data").write_bytes(b"data")
    how = ["pkeyutl", "-rawin"] if "ED25519" in kind else ["dgst", "-sha256"]
    if "ED25519" in kind:
        made = openssl(*how, "-sign", "-inkey", private, "-in", tmp_path / "data")
    else:
        made = openssl(*how, "-sign", private, tmp_path / "data")
    known = keys.load_public(public)
    assert known.fits(made, b"data")
    assert not known.fits(made, b"date")
    assert not known.fits(made[:-1], b"data")
    assert not known.fits(b"", b"data")
    assert known.fits(keys.load_private(private, None).sign(b"more"), b"more")


def test_a_password(tmp_path):
    path = tmp_path / "k"
    path.write_bytes(keys.generate(b"secret")[0])
    assert keys.load_private(path, b"secret").sign(b"")
    with pytest.raises(InvalidValueError, match="needs a password"):
        keys.load_private(path, None)
    with pytest.raises(InvalidValueError, match="the password is another"):
        keys.load_private(path, b"other")


def test_a_password_is_not_in_the_way_of_a_plain_key(pair):
    assert keys.load_private(pair[0], b"secret").sign(b"")


@pytest.mark.parametrize("load", [lambda p: keys.load_private(p, None), keys.load_public])
def test_what_is_no_key(load, tmp_path):
    path = tmp_path / "k"
    with pytest.raises(HostError):
        load(path)
    for data in (b"", b"\0" * 100, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        path.write_bytes(data)
        with pytest.raises(InvalidValueError, match="keygen"):
            raise_with_hint(load, path)


def raise_with_hint(load, path):
    try:
        load(path)
    except InvalidValueError as fault:
        raise InvalidValueError(f"{fault.message} {fault.hint}") from fault


def test_keys_for_something_else_are_named(pair, tmp_path):
    with pytest.raises(InvalidValueError, match="is a private key"):
        keys.load_public(pair[0])
    path = tmp_path / "c"
    path.write_bytes(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n")
    with pytest.raises(InvalidValueError, match="cosign's own form"):
        keys.load_private(path, b"x")


def test_without_the_library(monkeypatch, pair):
    monkeypatch.setitem(__import__("sys").modules, "cryptography", None)
    with pytest.raises(MissingToolError) as told:
        keys.load_public(pair[1])
    assert "ringzero[sign]" in told.value.hint
