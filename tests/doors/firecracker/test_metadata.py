"""The metadata: merge patches, pointers, forms of answers, tokens."""

import pytest

from ringzero.doors.firecracker.faults import ApiFault
from ringzero.doors.firecracker.metadata import TOKEN_PATH, Metadata, merged, pointed

TREE = {"latest": {"meta-data": {"ami-id": "ami-1", "n": 1, "list": ["a", {"b": "c"}]}, "x": "y"}}


@pytest.fixture
def data():
    found = Metadata(1000, clock=lambda: found.now)
    found.now = 100.0
    found.put(TREE)
    return found


def ask(data, path, method="GET", **headers):
    answer = data.answer(method, path, {k.replace("_", "-"): v for k, v in headers.items()})
    return answer.status, answer.content


# RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patches(target, patch, result):
    assert merged(target, patch) == result


def test_pointers():
    assert pointed({"a/b": {"~": [1, 2]}}, "/a~1b/~0/1") == 2
    for path in ("/a", "/a~1b/x", "/a~1b/~0/2", "/a~1b/~0/01", "/a~1b/~0/-1"):
        with pytest.raises(KeyError):
            pointed({"a/b": {"~": [1, 2]}}, path)


def test_forms(data):
    assert ask(data, "/") == (200, "latest/")
    assert ask(data, "/latest/meta-data") == (200, "ami-id\nn\nlist")
    assert ask(data, "/latest//meta-data/ami-id/") == (200, "ami-1")
    assert ask(data, "/latest/meta-data/ami-id", accept="application/json") == (200, '"ami-1"')
    assert ask(data, "/latest/meta-data/n")[0] == 501
    assert ask(data, "/latest/meta-data/n", accept="application/json") == (200, "1")
    assert ask(data, "/latest/none") == (404, "Resource not found: /latest/none.")
    data.imds_compat = True
    assert ask(data, "/latest/meta-data/ami-id", accept="application/json") == (200, "ami-1")


def test_tokens(data):
    data.version = "V2"
    assert ask(data, "/latest/x")[0] == 401
    assert ask(data, "/latest/x", x_metadata_token="00")[1] == "MMDS token not valid."
    status, token = ask(data, TOKEN_PATH, "PUT", x_metadata_token_ttl_seconds="60")
    assert status == 200
    assert ask(data, "/latest/x", x_metadata_token=token) == (200, "y")
    assert ask(data, "/latest/x", x_aws_ec2_metadata_token=token) == (200, "y")
    wrong = ("0" if token[0] != "0" else "1") + token[1:]
    assert ask(data, "/latest/x", x_metadata_token=wrong)[0] == 401
    data.now += 61
    assert ask(data, "/latest/x", x_metadata_token=token)[0] == 401


def test_tokens_of_others_are_no_good(data):
    other = Metadata(100)
    other.version = data.version = "V2"
    token = ask(other, TOKEN_PATH, "PUT", x_metadata_token_ttl_seconds="60")[1]
    assert ask(data, "/latest/x", x_metadata_token=token)[0] == 401


@pytest.mark.parametrize("life", ["0", "21601", "-1", "x", "", "9" * 30])
def test_tokens_that_live_too_long(data, life):
    assert ask(data, TOKEN_PATH, "PUT", x_metadata_token_ttl_seconds=life)[0] == 400


def test_who_asks_amiss_for_a_token(data):
    assert "time to live" in ask(data, TOKEN_PATH, "PUT")[1]
    assert ask(data, "/other", "PUT", x_metadata_token_ttl_seconds="1")[0] == 404
    # By way of a proxy nobody gets one, as on EC2.
    forwarded = {"x_forwarded_for": "1.2.3.4", "x_metadata_token_ttl_seconds": "1"}
    assert ask(data, TOKEN_PATH, "PUT", **forwarded)[0] == 400
    assert ask(data, "/latest", "POST")[0] == 405
    assert ask(data, "latest")[0] == 400


def test_a_patch_before_there_is_anything():
    with pytest.raises(ApiFault, match="not initialized"):
        Metadata(100).patch({})
