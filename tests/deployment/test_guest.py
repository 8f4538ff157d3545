"""Deployments of real guests: an image from a Vmfile, its next version under load, and back."""

import os
import signal
import threading

import pytest

import ringzero
from ringzero.build.builder import Options, build
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from ringzero.deployment import client, directory
from ringzero.errors import DeployError
from ringzero.image.oci.reference import parse_reference
from tests.build.conftest import cache  # noqa: F401 - a fixture
from tests.build.test_services import Quiet
from tests.deployment.conftest import get, port_of, until
from tests.deployment.test_deploy import Load

pytestmark = pytest.mark.boot

TEXT = """\
FROM micro
COPY v /www/v
ENV WORD=image
CMD ["sh", "-c", "echo $WORD $KEY >/www/env; exec httpd -f -p 80 -h /www"]
"""


@pytest.fixture
def image(cache, places):  # noqa: F811
    """Makes the image web:1 whose /v says something."""

    def made(text):
        (places / "v").write_text(text)
        options = Options(names=(parse_reference("web:1"),))
        build(parse(TEXT), Context(places), options, cache=cache, listener=Quiet())

    return made


def described(**more):
    check = {"http": "/env", "interval": "200ms", "start_interval": "50ms", "timeout": "100s"}
    return {
        "name": "web",
        "image": "web:1",
        "memory": "128M",
        "ports": ["0:80"],
        "check": check,
        "drain": "20s",
    } | more


def test_a_version_a_bad_one_and_back(image, places):
    image("one")
    (places / "key").write_text("hunter2\n")
    more = {"secrets": {"KEY": {"file": str(places / "key")}}, "env": {"WORD": "file's"}}
    ringzero.deploy(described(**more))
    port = port_of()
    assert get(port, "/env") == (200, "file's hunter2\n")
    assert get(port, "/v") == (200, "one")
    # The same name, and another image.
    image("two")
    with Load(port, 2, "/v") as load:
        assert ringzero.deploy(described(**more))["version"] == 2
        with pytest.raises(DeployError, match="status 7"):
            ringzero.deploy(described(command=["sh", "-c", "exit 7"]))
        assert client.rollback()["version"] == 4
    assert load.failed == []
    assert set(load.answers) == {(200, "one"), (200, "two")}
    assert get(port, "/v") == (200, "one")
    for path in places.rglob("machines/*/*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path


@pytest.fixture
def two(places):
    """Two machines of ringzero's own image, which are asked by a command."""
    command = "mkdir /w; echo well >/w/v; touch /run/well; exec httpd -f -h /w -p 80"
    check = {"command": ["test", "-e", "/run/well"], "start_interval": "50ms", "retries": 1}
    ringzero.deploy(
        described(
            image="micro",
            command=["sh", "-c", command],
            replicas=2,
            check=check | {"interval": "100ms", "timeout": "100s"},
        )
    )
    return directory.find("web")


def test_what_dies_comes_again(two):
    from ringzero.control.host import client as machines

    port = port_of()
    assert get(port, "/v") == (200, "well\n")
    os.kill(client.status()["pid"], signal.SIGKILL)
    until(lambda: not two.alive)
    assert [m["restarts"] for m in client.status()["services"][0]["machines"]] == [0, 0]
    # Found not to be well by its own process, it is started again.
    machines.machine("web-1-1").run(["rm", "/run/well"])

    def again():
        found = client.status()["services"][0]["machines"]
        return found[0]["restarts"] and [m["state"] for m in found] == ["healthy"] * 2

    until(again, 120)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(get(port, "/v"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [(200, "well\n")] * 8
