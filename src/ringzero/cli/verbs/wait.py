"""`ringzero wait`: wait for a machine's end."""

from __future__ import annotations

import argparse

from ringzero.cli.machines import add_json, add_name, named
from ringzero.cli.text import printable
from ringzero.cli.verb import AS_IS, VERBS, Away, Verb, print_json


@VERBS.register("wait")
class Wait(Verb):
    summary = "wait for a machine's end, and end with its exit code"
    away = Away(AS_IS, actions=True)
    examples = "  ringzero run -d --name job -- sleep 5; ringzero wait job\n"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the name."""
        add_json(parser)
        add_name(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        """Wait; say how it ended."""
        record = named(arguments).wait()
        if arguments.json:
            print_json(record.to_dict())
        else:
            detail = printable(record.detail)
            print(f"{record.reason}: {detail}" if detail else record.reason)
        return record.exit_code
