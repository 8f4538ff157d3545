"""Signed images: made here, pushed, pulled, refused; cosign beside it."""

import contextlib
import json
import os
import shutil
import subprocess

import pytest

from ringzero.cli.main import main
from ringzero.errors import GuestImageError, SignatureError
from ringzero.image.oci import boot, referrers
from ringzero.image.oci.made import Made, put
from ringzero.image.oci.manifest import OCI_INDEX, Descriptor
from ringzero.image.oci.pull import pull
from ringzero.image.oci.push import push
from ringzero.image.oci.reference import parse, parse_reference
from ringzero.image.oci.registry import Registry
from ringzero.image.oci.signing import admission, document, kept, keys, remote
from ringzero.image.oci.store import Store
from tests.image.oci.docker_registry import docker_registry, peer
from tests.image.oci.images import Image, digest
from tests.image.oci.test_push import Receiver


class LoopRegistry(Receiver):
    """A registry that gives what it was given."""

    def serve(self, request):
        kind, _, target = request.path.removeprefix("/v2/app/").partition("/")
        if request.command != "GET":
            if kind == "manifests":
                data = request.rfile.read(int(request.headers.get("Content-Length", 0)))
                told = (data, request.headers["Content-Type"])
                self.manifests[target] = self.manifests[digest(data)] = told
                return self.answer(request, 201)
            return super().serve(request)
        if kind == "manifests" and target in self.manifests:
            data, told = self.manifests[target]
            return self.answer(request, 200, data, {"Content-Type": told})
        if kind == "blobs" and target in self.blobs:
            return self.answer(request, 200, self.blobs[target])
        return self.answer(request, 404)


@pytest.fixture
def registry():
    found = LoopRegistry()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def image(tmp_path, cache):
    Image([{"a": b"1"}]).write_layout(tmp_path / "layout")
    return pull(parse(f"oci:{tmp_path}/layout"), cache=cache, architecture="amd64")


@pytest.fixture
def key(tmp_path):
    return pair(tmp_path / "k")


def pair(stem):
    """Make keys STEM.key and STEM.pub; return the stem."""
    private, public = keys.generate(None)
    stem.with_suffix(".key").write_bytes(private)
    stem.with_suffix(".pub").write_bytes(public)
    return stem


def sign(image, name, stem):
    return kept.sign(image, name, keys.load_private(stem.with_suffix(".key"), None))


def pulled(name, place, *stems):
    public = [stem.with_suffix(".pub") for stem in stems]
    return pull(name, cache=place, architecture="amd64", keys=public)


def test_a_signed_image_comes_and_its_signature_with_it(registry, image, cache, key, tmp_path):
    name = parse_reference(f"{registry.host}/app:1")
    made = sign(image, name, key)
    # Another time by the same key: nothing is added.
    assert sign(image, name, key) == made
    push(image, name, cache=cache)
    found = pulled(name, tmp_path / "2", key)
    assert kept.load(found) == [made]
    # It goes on from there.
    other = pair(tmp_path / "other")
    sign(found, name, other)
    push(found, name, cache=tmp_path / "2")
    assert pulled(name, tmp_path / "3", other).digest == image.digest
    assert pulled(name, tmp_path / "4", tmp_path / "other", key).digest == image.digest
    tag = document.tag(image.digest)
    assert len(document.listed(registry.manifests[tag][0])) == 2


def refused(name, place, *stems, error=SignatureError):
    with pytest.raises(error) as told:
        pulled(name, place, *stems)
    # Not a byte of it is there.
    assert Store(place).images() == []
    assert [p for p in (place / "blobs").glob("*/*") if p.suffix != ".lock"] == []
    return str(told.value)


def test_bad_signatures_are_refused_and_nothing_is_stored(registry, image, cache, key, tmp_path):
    name = parse_reference(f"{registry.host}/app:1")
    push(image, name, cache=cache)
    assert "is not signed" in refused(name, tmp_path / "2", key)
    sign(image, name, pair(tmp_path / "other"))
    push(image, name, cache=cache)
    assert "none of which is good by" in refused(name, tmp_path / "2", key)
    # A good signature of another image.
    moved = kept.sign(image, name, keys.load_private(key.with_suffix(".key"), None))
    elsewhere = document.payload("h/app", f"sha256:{1:064}")
    bad = keys.load_private(key.with_suffix(".key"), None).sign(elsewhere)
    tag = document.tag(image.digest)

    def serve(*signatures):
        data, _ = document.manifest(parts(image), signatures, None)
        registry.manifests[tag] = data, "application/vnd.oci.image.manifest.v1+json"
        for each in signatures:
            registry.blobs[digest(each.payload)] = each.payload

    serve(document.Signature(elsewhere, bad))
    assert f"is of another image, sha256:{1:064}" in refused(name, tmp_path / "2", key)
    # The right payload with a signature that was changed.
    serve(document.Signature(moved.payload, moved.signature[:-2] + b"\0\0"))
    assert "none of which is good" in refused(name, tmp_path / "2", key)
    # A payload that is another one than the manifest says.
    serve(moved)
    registry.blobs[digest(moved.payload)] = moved.payload.replace(b"optional", b"optionel")
    said = refused(name, tmp_path / "2", key, error=GuestImageError)
    assert "digest of what came is wrong" in said
    serve(moved)
    assert pulled(name, tmp_path / "2", key).digest == image.digest


def parts(image):
    from ringzero.image.oci.manifest import OCI_MANIFEST, Descriptor

    return Descriptor(OCI_MANIFEST, image.digest, 1)


def test_the_index_of_several_platforms_may_be_what_is_signed(registry, key, tmp_path):
    whole = Image([{"a": b"1"}])
    manifest = whole.digest
    whole.index((Image([{"a": b"2"}], architecture="arm64"), "arm64"))
    for name, data in whole.blobs.items():
        registry.blobs[name] = data
        registry.manifests[name] = data, whole.types[name]
    registry.manifests["1"] = registry.manifests[whole.digest]
    name = parse_reference(f"{registry.host}/app:1")
    refused(name, tmp_path / "2", key)
    for signed in (whole.digest, manifest):
        made = keys.load_private(key.with_suffix(".key"), None)
        payload = document.payload("h/app", signed)
        signature = document.Signature(payload, made.sign(payload))
        data, _ = document.manifest(parts(whole), [signature], None)
        registry.blobs[digest(payload)] = payload
        registry.manifests[document.tag(signed)] = (
            data,
            "application/vnd.oci.image.manifest.v1+json",
        )
        assert pulled(name, tmp_path / "2", key).digest == manifest
        shutil.rmtree(tmp_path / "2")
        del registry.manifests[document.tag(signed)]


def test_a_policy_refuses_what_is_not_signed(registry, image, cache, key, tmp_path, monkeypatch):
    path = tmp_path / "images.toml"
    path.write_text(f'[[image]]\nname = "{registry.host}/*"\nkeys = ["k.pub"]\n')
    monkeypatch.setenv("RINGZERO_IMAGE_POLICY", str(path))
    name = parse_reference(f"{registry.host}/app:1")
    push(image, name, cache=cache)
    refused(name, tmp_path / "2")
    sign(image, name, key)
    push(image, name, cache=cache)
    assert pulled(name, tmp_path / "2").digest == image.digest
    # With --verify, both have to have signed.
    refused(name, tmp_path / "3", pair(tmp_path / "other"))


def test_a_policy_holds_for_what_is_stored(registry, image, cache, key, tmp_path, monkeypatch):
    """Also for an image that came before the policy; what was checked then need not be again."""
    name = parse_reference(f"{registry.host}/app:1")
    push(image, name, cache=cache)
    pulled(name, cache)
    monkeypatch.setattr(boot, "files", lambda name, image, progress: image)
    assert boot.find(str(name)).digest == image.digest
    path = tmp_path / "images.toml"
    path.write_text(f'[[image]]\nname = "{registry.host}/*"\nkeys = ["k.pub"]\n')
    monkeypatch.setenv("RINGZERO_IMAGE_POLICY", str(path))
    with pytest.raises(SignatureError, match="is not signed; it is in the store") as told:
        boot.find(str(name))
    assert f"ringzero pull {name}" in told.value.hint
    # Signed by somebody else: no better.
    sign(image, name, pair(tmp_path / "other"))
    with pytest.raises(SignatureError, match="none of which is good"):
        boot.find(str(name))
    sign(image, name, key)
    assert boot.find(str(name)).digest == image.digest
    # Another policy, another key.
    pair(tmp_path / "k2")
    path.write_text(f'[[image]]\nname = "{registry.host}/*"\nkeys = ["k2.pub"]\n')
    with pytest.raises(SignatureError):
        boot.find(str(name))
    path.write_text('default = "refuse"\n')
    with pytest.raises(SignatureError, match="lets no image"):
        boot.find(str(name))


def test_a_signature_of_an_index_is_remembered(registry, key, tmp_path, monkeypatch):
    """Its digest is none of the image that was chosen from it."""
    other = Image([{"a": b"2"}], architecture="arm64")
    index = Image([{"a": b"1"}]).index((other, "arm64"))
    for blob, data in index.blobs.items():
        registry.blobs[blob] = data
        registry.manifests[blob] = (data, index.types[blob])
    registry.manifests["1"] = registry.manifests[index.digest]
    name = parse_reference(f"{registry.host}/app:1")
    data = document.payload(f"{registry.host}/app", index.digest)
    private = keys.load_private(key.with_suffix(".key"), None)
    signature = document.Signature(data, private.sign(data))
    with contextlib.closing(Registry(name)) as there:
        size = len(registry.manifests["1"][0])
        remote.put(there, Descriptor(OCI_INDEX, index.digest, size), [signature])
    place = tmp_path / "2"
    found = pulled(name, place, key)
    assert kept.load(found) == []
    path = tmp_path / "images.toml"
    path.write_text(f'[[image]]\nname = "{registry.host}/*"\nkeys = ["k.pub"]\n')
    monkeypatch.setenv("RINGZERO_IMAGE_POLICY", str(path))
    admission.check(found, name)
    assert admission_of(found) == {"keys": [keys.load_public(tmp_path / "k.pub").fingerprint]}
    (found.root.parent / "admitted.json").write_bytes(b"[" * 9)
    with pytest.raises(SignatureError):
        admission.check(found, name)


def admission_of(image):
    return json.loads((image.root.parent / "admitted.json").read_bytes())


def test_what_was_made_here_may_run(tmp_path, cache, monkeypatch):
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": []}})
    found = put(Made(config.encode(), ()), cache=cache)
    (tmp_path / "images.toml").write_text('default = "refuse"\n')
    monkeypatch.setenv("RINGZERO_IMAGE_POLICY", str(tmp_path / "images.toml"))
    admission.check(found, parse("made:1"))


class ReferrersRegistry(LoopRegistry):
    """A registry with an API for referrers (distribution specification 1.1)."""

    def serve(self, request):
        kind, _, target = request.path.removeprefix("/v2/app/").partition("/")
        if request.command == "GET" and kind == "referrers":
            self.log.append((request.command, request.path))
            return self.answer(request, 200, self.listed(target), {"Content-Type": OCI_INDEX})
        return super().serve(request)

    def listed(self, target):
        """All that have a subject, whatever is asked for: the filter is the registry's choice."""
        subject, found = target.partition("?")[0], {}
        for data, kind in self.manifests.values():
            value = json.loads(data)
            if (value.get("subject") or {}).get("digest") == subject:
                found[digest(data)] = {
                    "mediaType": kind, "digest": digest(data), "size": len(data),
                    "artifactType": value.get("artifactType"),
                }  # fmt: skip
        return json.dumps({"schemaVersion": 2, "manifests": list(found.values())}).encode()

    def answer(self, request, status, data=b"", headers=None):
        if status == 201 and "/manifests/" in request.path:
            headers = {"OCI-Subject": "yes"}
        return super().answer(request, status, data, headers)


def test_a_registry_with_an_api_for_referrers_is_asked(image, cache, key, tmp_path):
    registry = ReferrersRegistry()
    try:
        name = parse_reference(f"{registry.host}/app:1")
        made = sign(image, name, key)
        push(image, name, cache=cache)
        # It lists them by itself: no index of ours is put there.
        assert referrers.tag(image.digest) not in registry.manifests
        # Nothing but the API leads to the signature.
        del registry.manifests[document.tag(image.digest)]
        found = pulled(name, tmp_path / "2", key)
        assert kept.load(found) == [made]
        asked = [path for _, path in registry.log if "/referrers/" in path]
        assert f"/v2/app/referrers/{image.digest}?artifactType=" in asked[0]
        # One of two has signed: what the other says beside it is no harm.
        other = pair(tmp_path / "other")
        refused(name, tmp_path / "3", other)
    finally:
        registry.server.shutdown()
        registry.server.server_close()


@pytest.mark.parametrize("reply", [b"<html>", b'{"manifests": 1}', b'{"manifests": []}'])
def test_an_api_that_is_none_is_passed_over(image, cache, key, tmp_path, reply):
    registry = ReferrersRegistry()
    registry.listed = lambda _: reply
    try:
        name = parse_reference(f"{registry.host}/app:1")
        sign(image, name, key)
        push(image, name, cache=cache)
        assert pulled(name, tmp_path / "2", key).digest == image.digest
    finally:
        registry.server.shutdown()
        registry.server.server_close()


def test_layouts_carry_no_signatures(image, tmp_path, key):
    refused(parse(f"oci:{tmp_path}/layout"), tmp_path / "2", key)


def test_the_commands(registry, image, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = f"{registry.host}/app:1"
    assert main(["image", "tag", image.digest[7:19], name]) == 0
    assert main(["image", "keygen", "release", "--no-password"]) == 0
    assert (tmp_path / "release.key").stat().st_mode & 0o777 == 0o600
    assert main(["image", "keygen", "release"]) == 2
    monkeypatch.setenv("RINGZERO_KEY_PASSWORD", "secret")
    capsys.readouterr()
    assert main(["image", "keygen", "other", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encrypted"] is True
    assert main(["image", "verify", name, "--key", "release.pub"]) == SignatureError.exit_code
    assert "is not signed" in capsys.readouterr().err
    assert main(["image", "sign", name, "--key", "release.key", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"digest": image.digest, "signatures": 1}
    assert main(["image", "verify", name, "--key", "release.pub"]) == 0
    assert main(["push", "-q", name, "--sign", "other.key"]) == 0
    monkeypatch.setenv("RINGZERO_CACHE_DIR", str(tmp_path / "2"))
    assert main(["pull", "-q", name, "--verify", "other.pub"]) == 0
    assert main(["image", "verify", name, "--key", "other.pub"]) == 0
    # Only the signature that was asked for was checked, and is kept.
    assert main(["image", "verify", name, "--key", "release.pub"]) == SignatureError.exit_code
    assert main(["pull", "-q", name, "--verify", "missing.pub"]) == 3


@pytest.mark.peer
def test_cosign_takes_ours_and_ours_cosigns(image, cache, key, tmp_path):
    cosign = peer("cosign")
    environment = {**os.environ, "COSIGN_PASSWORD": "", "HOME": str(tmp_path)}

    def run(*words):
        done = subprocess.run(
            [cosign, *map(str, words)], capture_output=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    with docker_registry(tmp_path / "registry") as host:
        name = parse_reference(f"{host}/app:1")
        sign(image, name, key)
        push(image, name, cache=cache)
        offline = ["--insecure-ignore-tlog=true", "--allow-http-registry"]
        told = run("verify", *offline, "--key", key.with_suffix(".pub"), str(name))
        found = json.loads(told)[0]["critical"]["image"]["docker-manifest-digest"]
        assert found == image.digest
        # The other way round: a key of cosign's own, and its signature beside ours.
        run("generate-key-pair")
        run(
            *("sign", "--yes", "--tlog-upload=false", "--allow-http-registry"),
            *("--key", "cosign.key", f"{host}/app@{image.digest}"),
        )
        assert pulled(name, tmp_path / "2", tmp_path / "cosign").digest == image.digest
        assert pulled(name, tmp_path / "3", key).digest == image.digest
        refused(name, tmp_path / "4", pair(tmp_path / "other"))
        # Our private key is one that cosign imports.
        run("import-key-pair", "--key", key.with_suffix(".key"), "-o", "imported")


@pytest.mark.peer
def test_skopeo_takes_ours(image, cache, key, tmp_path):
    """Another reader of cosign's signatures, without our code (containers-policy.json(5))."""
    skopeo = peer("skopeo")
    (tmp_path / "registries.d").mkdir()
    (tmp_path / "registries.d/all.yaml").write_text(
        "default-docker:\n  use-sigstore-attachments: true\n"
    )

    def copy(host, stem, name):
        # cosign's signatures name a repository, without a tag.
        wanted = {
            "type": "sigstoreSigned",
            "keyPath": str(stem.with_suffix(".pub")),
            "signedIdentity": {"type": "matchRepository"},
        }
        policy = {"default": [{"type": "reject"}], "transports": {"docker": {host: [wanted]}}}
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        return subprocess.run(
            [skopeo, "--policy", tmp_path / "policy.json", "--registries.d",
             tmp_path / "registries.d", "copy", "--src-tls-verify=false", "--remove-signatures",
             f"docker://{host}/app:1", f"oci:{tmp_path / name}"],
            capture_output=True, text=True,
        )  # fmt: skip

    other = pair(tmp_path / "other")
    with docker_registry(tmp_path / "registry") as host:
        name = parse_reference(f"{host}/app:1")
        push(image, name, cache=cache)
        done = copy(host, key, "unsigned")
        assert done.returncode and "signature was required" in done.stderr
        sign(image, name, key)
        push(image, name, cache=cache)
        done = copy(host, other, "other")
        assert done.returncode and "rejected" in done.stderr.lower()
        done = copy(host, key, "good")
        if "sigstore disabled" in done.stderr:
            pytest.skip("this skopeo is built without sigstore, as Debian's is")
        assert done.returncode == 0, done.stderr
        # One more signature, and the first is still there.
        sign(image, name, other)
        push(image, name, cache=cache)
        for number, stem in enumerate((key, other)):
            assert copy(host, stem, f"both-{number}").returncode == 0
