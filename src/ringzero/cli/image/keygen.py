"""`ringzero image keygen`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ringzero.cli import signing
from ringzero.cli.image_action import ACTIONS, add_json
from ringzero.cli.verb import REFUSED, Away, Verb, print_json


@ACTIONS.register("keygen")
class KeyGeneration(Verb):
    summary = "make a pair of keys that sign images and verify them"
    away = Away(REFUSED, why="keys are made where they are kept: leave --host out")
    examples = """\
  ringzero image keygen release        release.key, which signs, and release.pub, for all others
  RINGZERO_KEY_PASSWORD=... ringzero image keygen release   encrypted by a password

The keys are ECDSA P-256 in PEM; `cosign verify --key release.pub` takes the public one, `cosign
import-key-pair --key release.key` the private one. pip install 'ringzero[sign]'
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", default="ringzero", metavar="NAME")
        parser.add_argument(
            "--no-password",
            action="store_true",
            help="do not ask: the private key is not encrypted",
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.errors import InvalidValueError
        from ringzero.image.oci.signing import keys

        private, public = Path(f"{arguments.name}.key"), Path(f"{arguments.name}.pub")
        for path in (private, public):
            if path.exists() or path.is_symlink():
                raise InvalidValueError(
                    f"{path} exists", hint="keys are not overwritten: choose another name"
                )
        keys.require()
        password = None if arguments.no_password else signing.password()
        if password is None and not arguments.no_password and sys.stdin.isatty():
            password = signing.new_password()
        secret, told = keys.generate(password)
        _write(private, secret, 0o600)
        _write(public, told, 0o644)
        if arguments.json:
            print_json(
                {"private": str(private), "public": str(public), "encrypted": bool(password)}
            )
        else:
            print(private)
            print(public)
        return 0


def _write(path: Path, data: bytes, mode: int) -> None:
    from ringzero.host.files import host_error

    try:
        # Never through a link, and never readable for a moment.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(data)
    except OSError as fault:
        raise host_error(fault, "write", path) from fault
