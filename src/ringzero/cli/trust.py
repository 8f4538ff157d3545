"""Flags that say how a registry's certificate is checked; `pull` and `push` share them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringzero.image.oci.certificates import Trust


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--tls-verify",
        type=_truth,
        default=True,
        metavar="BOOL",
        help="false: the registry's certificate is not checked, and it may speak plain HTTP",
    )
    parser.add_argument(
        "--cert-dir",
        metavar="DIR",
        help="certificates for this registry: *.crt (authorities), *.cert and *.key (our own)",
    )


def trust_of(arguments: argparse.Namespace) -> Trust:
    """Return what the flags say. Raises NotFoundError."""
    from ringzero.errors import NotFoundError
    from ringzero.image.oci.certificates import Trust

    folder = Path(arguments.cert_dir) if arguments.cert_dir else None
    if folder is not None and not folder.is_dir():
        raise NotFoundError(f"--cert-dir {folder} is no directory")
    return Trust(arguments.tls_verify, folder)


def _truth(text: str) -> bool:
    """Return what a word says, as Go's programs read it: skopeo, podman and their kin."""
    known = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return known[text.lower()]
