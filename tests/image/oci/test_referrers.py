"""The index of what refers to an image: what others put there stays."""

import json

from ringzero.image.oci import referrers
from ringzero.image.oci.manifest import Descriptor


def test_those_of_others_stay_and_ones_own_is_replaced():
    other = {"mediaType": "s", "digest": f"sha256:{9:064}", "size": 1, "artifactType": "signature"}
    first, second = (Descriptor("m", f"sha256:{n:064}", 1) for n in (1, 2))
    data = referrers.index(first, "memory", json.dumps({"manifests": [other, 7]}).encode())
    again = referrers.index(second, "memory", data)
    assert json.loads(again)["manifests"][0] == other
    assert len(json.loads(again)["manifests"]) == 2
    assert referrers.among(data, "memory") == [first]
    assert referrers.among(again, "memory") == [second]
    assert referrers.among(again, "none") == []
    assert referrers.among(b'{"manifests": 1}', "memory") == []
