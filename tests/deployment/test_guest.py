"""Deployments of real guests that die; `test_chain` has them come and change."""

import os
import signal
import threading

import pytest

import ringzero
from ringzero.deployment import client, directory
from tests.deployment.conftest import get, port_of, until

pytestmark = pytest.mark.boot


@pytest.fixture
def two(places):
    """Two machines of ringzero's own image, which are asked by a command."""
    command = "mkdir /w; echo well >/w/v; touch /run/well; exec httpd -f -h /w -p 80"
    check = {"command": ["test", "-e", "/run/well"], "start_interval": "50ms", "retries": 1}
    ringzero.deploy(
        {
            "name": "web",
            "image": "micro",
            "memory": "128M",
            "ports": ["0:80"],
            "command": ["sh", "-c", command],
            "replicas": 2,
            "check": check | {"interval": "100ms", "timeout": "100s"},
            "drain": "20s",
        }
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
