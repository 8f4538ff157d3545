"""A made-up distribution: packages with files in many places, and dpkg's notes of them."""

import random

_WORDS = 400


class Distribution:
    """Packages by name, each with the bytes of its files together; versions by name."""

    def __init__(self, sizes):
        self.sizes = sizes

    def write(self, place, **versions):
        """Write all files below `place`, which may have those of other versions."""
        status = b""
        for name in self.sizes:
            version = versions.get(name, 1)
            for path, data in self.files(name, version).items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(data)
            status += b"Package: %s\nStatus: install ok installed\nVersion: %d\n\n" % (
                name.encode(),
                version,
            )
        (place / "var/lib/dpkg/status").write_bytes(status)
        (place / "var/log").mkdir(exist_ok=True)
        (place / "var/log/dpkg.log").write_text(f"installed {versions}\n")

    def files(self, name, version):
        """Return the files of a package by path: half of their bytes pack, half do not."""
        noise = random.Random(f"{name} {version}")
        words = [b"%x" % noise.getrandbits(32) for _ in range(_WORDS)]
        half = self.sizes[name] // 2
        text = b" ".join(noise.choices(words, k=half // 8 + 1))[:half]
        found = {
            f"usr/bin/{name}": noise.randbytes(half),
            f"usr/lib/x86_64-linux-gnu/lib{name}.so.1": text[: half // 2],
            f"usr/share/doc/{name}/changelog": text[half // 2 :],
        }
        # As dpkg has it: of before the directories became one.
        listed = ["/.", "/usr", "/usr/bin", *(f"/{path.removeprefix('usr/')}" for path in found)]
        listed[-1] = "/" + listed[-1].strip("/").replace("share/", "usr/share/", 1)
        listed[-3] = f"/usr/bin/{name}"
        found[f"var/lib/dpkg/info/{name}:amd64.list"] = "\n".join([*listed, ""]).encode()
        found[f"var/lib/dpkg/info/{name}:amd64.md5sums"] = str(version).encode()
        return found
