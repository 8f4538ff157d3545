"""kill -9 in the middle of builds: what the cache has is right, and the next build ends right."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest

from ringzero.build.builder import build
from ringzero.build.job import Options
from ringzero.build.origin import Context
from ringzero.build.vmfile.parse import parse
from tests import chance
from tests.build.test_services import Quiet

pytestmark = pytest.mark.boot

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# 500 in `make fuzz`.
KILLS = 10 * FUZZ
TEXT = """\
FROM micro
RUN head -c 100000 /dev/zero | tr '\\0' x >/first
COPY file /second
RUN echo {} $(cat /first /second | md5sum) >/last
"""


def check(cache):
    """Assert that each step that is known has the layer that it speaks of."""
    for path in (cache / "build/steps").glob("*.json"):
        value = json.loads(path.read_bytes())
        data = (cache / "build/layers" / value["digest"].partition(":")[2]).read_bytes()
        assert len(data) == value["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == value["digest"]


def test_builds_that_are_killed_leave_nothing_wrong(cache, tmp_path):
    place = tmp_path / "context"
    place.mkdir()
    (place / "file").write_bytes(bytes(range(256)) * 400)

    def made(word):
        text = TEXT.format(word)
        return build(parse(text), Context(place), Options(), cache=cache, listener=Quiet())

    begin = time.monotonic()
    wanted = made("end").digest
    longest = time.monotonic() - begin
    (cache / "build").rename(cache / "elsewhere")
    seed = chance.seed()
    print("seed", seed)
    moments = random.Random(seed)
    for number in range(KILLS):
        (place / "Vmfile").write_text(TEXT.format(number % 3))
        victim = subprocess.Popen(
            [sys.executable, "-m", "ringzero", "image", "build", "--progress", "quiet", str(place)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            victim.wait(moments.uniform(0, longest))
        except subprocess.TimeoutExpired:
            victim.kill()
            victim.wait()
        check(cache)
    assert made("end").digest == wanted
