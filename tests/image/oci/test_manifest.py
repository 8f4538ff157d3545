"""Documents of images, and archives on this disk, changed: an error of ours or an answer."""

import contextlib
import io
import json
import os
import random
import tarfile

import pytest

from ringzero.api.values import HealthCheck
from ringzero.errors import GuestImageError, HostError, InvalidValueError, NotFoundError
from ringzero.image.oci import manifest
from ringzero.image.oci.local import open_local
from ringzero.image.oci.process import find_user, script
from ringzero.image.oci.pull import pull
from ringzero.image.oci.reference import parse
from tests.image.bootloader.test_fuzz import changed
from tests.image.oci.images import Image

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
CONFIG = {
    "Entrypoint": ["/x", "-c"],
    "Env": ["A=1", "B=two words"],
    "User": "me:video",
    "WorkingDir": "/srv",
    "StopSignal": "SIGINT",
    "ExposedPorts": {"80/tcp": {}},
    "Volumes": {"/data": {}},
    "Healthcheck": {"Test": ["CMD", "/x"], "Interval": 1, "Timeout": 2, "Retries": 3},
}
IMAGE = Image([{"a": b"1"}], CONFIG)
OURS = (GuestImageError, NotFoundError, InvalidValueError)


def mutated(value, random_):
    """Return a JSON value with one of its parts replaced by what does not belong there."""
    odd = (None, -1, 1 << 70, "", "\ud800", "\0", [], {}, [[]], True, 1.5, "9" * 5000, ["x"] * 600)
    if random_.random() < 0.2 or not isinstance(value, (dict, list)) or not value:
        return random_.choice(odd)
    if isinstance(value, dict):
        key = random_.choice(sorted(value))
        return {**value, key: mutated(value[key], random_)}
    at = random_.randrange(len(value))
    return [*value[:at], mutated(value[at], random_), *value[at + 1 :]]


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (None, None),
        ({}, None),
        ({"Test": []}, None),
        ({"Test": ["NONE"]}, None),
        ({"Test": ["CMD"]}, None),
        ({"Test": ["CMD", "/x", "-v"]}, HealthCheck(("/x", "-v"))),
        ({"Test": ["CMD-SHELL", "a || b"]}, HealthCheck(("/bin/sh", "-c", "a || b"))),
        (
            {"Test": ["CMD", "/x"], "Interval": 0, "Timeout": 1_500_000_000, "Retries": 0,
             "StartPeriod": 60_000_000_000, "StartInterval": 2_000_000_000},
            HealthCheck(("/x",), timeout=1.5, start_period=60, start_interval=2),
        ),
    ],
)  # fmt: skip
def test_health_checks(told, wanted):
    data = json.dumps({"config": {"Healthcheck": told}}).encode()
    assert manifest.image_config(data).health == wanted


def test_fuzz_changed_documents():
    random_ = random.Random(1)
    index = Image([{"a": b"1"}]).index((Image([{}], architecture="arm64"), "arm64"))
    documents = [*IMAGE.blobs.values(), *index.blobs.values()]
    documents = [data for data in documents if data.startswith(b"{")]
    for _ in range(1000 * FUZZ):
        data = random_.choice(documents)
        if random_.random() < 0.5:
            data = changed(data, random_)
        else:
            data = json.dumps(mutated(json.loads(data), random_)).encode()
        with contextlib.suppress(*OURS):
            value = manifest.document(data, "it")
            manifest.media_type(value)
            with contextlib.suppress(*OURS):
                manifest.choose(manifest.index(value), "amd64")
            with contextlib.suppress(*OURS):
                manifest.manifest(value)
            config = manifest.image_config(data)
            script(config, find_user(config.user, lambda _: b"")).encode()


def test_fuzz_changed_lists_of_users():
    random_ = random.Random(2)
    passwd = b"root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n#:x\n" * 3
    group = b"root:x:0:\nvideo:x:44:me,you\nme:x:1000\n" * 3
    for _ in range(300 * FUZZ):
        lists = {"/etc/passwd": changed(passwd, random_), "/etc/group": changed(group, random_)}
        user = random_.choice(("me", "me:video", "1000", "", "0:44", "7:", ":44", "²", "٣"))
        with contextlib.suppress(GuestImageError):
            found = find_user(user, lists.__getitem__)
            assert 0 <= found.uid < 1 << 32 and all(0 <= gid < 1 << 32 for gid in found.gids)


def archive():
    listed = [{"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l/layer.tar", "l/same"]}]
    contents = {
        "manifest.json": json.dumps(listed).encode(),
        "c.json": IMAGE.blobs[IMAGE.config["digest"]],
        "l/layer.tar": b"layer" * 100,
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("l/same")
        link.type, link.linkname = tarfile.SYMTYPE, "../l/layer.tar"
        made.addfile(link)
    return file.getvalue()


@pytest.mark.parametrize("name", ["", ":app:1"])
def test_fuzz_changed_archives(tmp_path, name):
    random_, path, whole = random.Random(3), tmp_path / "a.tar", archive()
    path.write_bytes(whole)
    with contextlib.closing(open_local(parse(f"docker-archive:{path}{name}"))) as source:
        document = manifest.document(source.manifest("")[0], "it")
        assert len(manifest.manifest(document).layers) == 2
    for _ in range(100 * FUZZ):
        path.write_bytes(changed(whole, random_))
        with (
            contextlib.suppress(*OURS),
            contextlib.closing(open_local(parse(f"docker-archive:{path}{name}"))) as source,
        ):
            manifest.manifest(manifest.document(source.manifest("")[0], "it"))


@pytest.mark.parametrize(
    "where", ["index.json", "manifest", "gone", "folder", "layer", "short", "missing", "plain"]
)
def test_layouts_that_are_damaged(tmp_path, where):
    """One message, and nothing that is left but locks."""
    image = Image([{"a": b"1" * 5000}], packing="" if where == "plain" else "+gzip")
    if where == "plain":
        # What the configuration calls a layer is another one.
        value = json.loads(image.blobs[image.config["digest"]])
        value["rootfs"]["diff_ids"] = [image.config["digest"]]
        image.rewrite(value)
    place = tmp_path / "layout"
    image.write_layout(place)
    blobs = place / "blobs" / "sha256"
    path = {
        "manifest": blobs / image.digest[7:],
        "layer": blobs / image.layers[0]["digest"][7:],
        "short": blobs / image.layers[0]["digest"][7:],
        "missing": blobs / image.layers[0]["digest"][7:],
    }.get(where, place / "index.json")
    if where in ("gone", "missing", "folder"):
        path.unlink()
    if where == "folder":
        path.mkdir()
    elif where == "short":
        path.write_bytes(path.read_bytes()[:-10])
    elif where == "layer":
        path.write_bytes(bytes(path.stat().st_size))
    elif where in ("index.json", "manifest"):
        path.write_text("[1")
    with pytest.raises((GuestImageError, HostError)) as told:
        pull(parse(f"oci:{place}"), cache=tmp_path / "cache", architecture="amd64")
    assert "\n" not in told.value.message
    left = {p for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    known = {p for p in left if p.name[-4:] == "lock" or f"sha256:{p.name}" in image.blobs}
    # What has come whole is kept for another time; no root file system, no halves.
    assert left == known, left - known
    assert not list((tmp_path / "cache" / "images").glob("*/"))
