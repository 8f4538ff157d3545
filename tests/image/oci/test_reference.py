"""Names of images, by the rules of distribution's reference package."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import InvalidValueError
from ringzero.image.oci.reference import Local, Reference, parse

SHA = "sha256:" + "a" * 64

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", Reference("docker.io", "library/debian", "latest")),
        ("debian:12", Reference("docker.io", "library/debian", "12")),
        ("user/app", Reference("docker.io", "user/app", "latest")),
        ("index.docker.io/user/app", Reference("docker.io", "user/app", "latest")),
        ("localhost/app", Reference("localhost", "app", "latest")),
        ("localhost:5000/x:1", Reference("localhost:5000", "x", "1")),
        ("127.0.0.1:5000/a/b/c:1", Reference("127.0.0.1:5000", "a/b/c", "1")),
        ("[::1]:5000/a", Reference("[::1]:5000", "a", "latest")),
        ("quay.example/app@" + SHA, Reference("quay.example", "app", None, SHA)),
        ("app:1@" + SHA, Reference("docker.io", "library/app", "1", SHA)),
        ("docker://debian:12", Reference("docker.io", "library/debian", "12")),
        ("oci:/some/dir", Local("oci", Path("/some/dir"))),
        ("oci:dir:tag", Local("oci", Path("dir"), "tag")),
        ("docker-archive:a.tar:foo/t:1", Local("docker-archive", Path("a.tar"), "foo/t:1")),
    ],
)
def test_what_names_mean(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", "UPPER", "a//b", "a/", "/a", "-a", "a:b/c", "a@sha256:1", "a@md5:" + "a" * 32,
     "a b", "host.example:99999/a", "a" * 256, "oci:", "a..b", "a:" + "t" * 129, "b\0c", "ab\n"],
)  # fmt: skip
def test_what_is_no_name(text):
    with pytest.raises(InvalidValueError):
        parse(text)


def test_short_names_of_docker_hub():
    assert parse("debian:12").familiar == "debian:12"
    assert parse("docker.io/user/app").familiar == "user/app:latest"
    assert parse("quay.example/app").familiar == "quay.example/app:latest"
    assert parse("debian").endpoint == "registry-1.docker.io"


@settings(max_examples=100 * FUZZ)
@given(st.text(max_size=60))
def test_fuzz_any_text_is_a_name_or_an_error_of_ours(text):
    try:
        found = parse(text)
    except InvalidValueError:
        return
    assert parse(str(found)) == found
