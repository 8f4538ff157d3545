"""What is signed, and the manifest that carries signatures."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringzero.errors import GuestImageError
from ringzero.image.oci.blobs import digest_of
from ringzero.image.oci.manifest import OCI_MANIFEST, Descriptor
from ringzero.image.oci.signing import document
from ringzero.image.oci.signing.document import Signature

IMAGE = Descriptor(OCI_MANIFEST, f"sha256:{7:064}", 100)


def signed(name="h/app", signature=b"s"):
    return Signature(document.payload(name, IMAGE.digest), signature)


def test_a_payload_is_what_cosign_writes():
    # cosign 2.2's `cosign generate` of an image, but for its name and digest.
    assert document.payload("h/app", IMAGE.digest).decode() == (
        '{"critical":{"identity":{"docker-reference":"h/app"},"image":{"docker-manifest-digest":'
        f'"{IMAGE.digest}"}},"type":"cosign container image signature"}},"optional":null}}'
    )
    assert signed().digest == IMAGE.digest
    assert document.tag(IMAGE.digest) == f"sha256-{7:064}.sig"


def test_a_manifest_is_read_again_and_others_stay():
    first, config = document.manifest(IMAGE, [signed()], None)
    value = json.loads(first)
    assert value["config"]["digest"] == digest_of(config)
    assert value["subject"]["digest"] == IMAGE.digest
    second, _ = document.manifest(IMAGE, [signed("h/other", b"t"), signed()], first)
    (one, other) = document.listed(second)
    assert [one[1], other[1]] == [b"s", b"t"]
    assert one[0].digest == digest_of(signed().payload)
    # The configuration of an image names its layers' plain digests: here their own.
    _, config = document.manifest(IMAGE, [], second)
    layers = [layer["digest"] for layer in json.loads(second)["layers"]]
    assert json.loads(config)["rootfs"]["diff_ids"] == layers


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"critical":7}',
        json.dumps({"critical": {"image": {"docker-manifest-digest": IMAGE.digest}}}).encode(),
        signed().payload.replace(IMAGE.digest.encode(), b"sha256:12"),
    ],
)
def test_what_signs_no_image(payload):
    with pytest.raises(GuestImageError):
        _ = Signature(payload, b"").digest


def layer(**more):
    found = signed().descriptor()
    return {**found, **more}


@pytest.mark.parametrize(
    "changed",
    [
        layer(annotations={document.ANNOTATION: "not base64!"}),
        layer(size=document.MAX_PAYLOAD + 1),
        layer(digest="sha256:1"),
    ],
)
def test_a_damaged_manifest(changed):
    with pytest.raises(GuestImageError):
        document.listed(json.dumps({"layers": [changed]}).encode())


def test_too_many_and_those_of_other_kinds():
    others = [layer(mediaType="application/x"), layer(annotations=None), 7]
    assert document.listed(json.dumps({"layers": others}).encode()) == []
    with pytest.raises(GuestImageError, match="more than 100"):
        document.listed(json.dumps({"layers": [layer()] * 101}).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(JSON, JSON, st.binary(max_size=10))
def test_any_manifest_is_read_or_refused(value, notes, signature):
    item = {"mediaType": document.PAYLOAD, "annotations": notes, **signed().descriptor()}
    text = base64.b64encode(signature).decode()
    item["annotations"] = notes if isinstance(notes, dict) else {document.ANNOTATION: text}
    for whole in (value, {"layers": value}, {"layers": [value, item]}):
        try:
            document.listed(json.dumps(whole).encode())
        except GuestImageError:
            continue
