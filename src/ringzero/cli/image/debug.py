"""`ringzero image debug`."""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING

from ringzero.cli.image_action import ACTIONS, add_json
from ringzero.cli.verb import Verb, print_json
from ringzero.errors import InvalidValueError

if TYPE_CHECKING:
    from ringzero.build.failures import Failure, Failures


@ACTIONS.register("debug")
class Debug(Verb):
    summary = "look into the machine in which a step of a build failed"
    examples = """\
  ringzero image debug                       a shell where the last step failed
  ringzero image debug 4be1c7                the one that the build's error names
  ringzero image debug --command 'cat config.log'
  ringzero image debug --command env --json  its output and exit status as JSON
  ringzero image debug --json                all that are kept
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "name", nargs="?", default="", metavar="NAME", help="the last one, or as the error says"
        )
        parser.add_argument(
            "--command",
            "-c",
            dest="line",
            metavar="CMD",
            help="run this by the step's shell, and end",
        )
        add_json(parser)

    def execute(self, arguments: argparse.Namespace) -> int:
        from ringzero.build.cache import BuildCache
        from ringzero.settings import CACHE_DIR

        builds = BuildCache(CACHE_DIR.get())
        with builds.in_use():
            failures = builds.failures
            if arguments.json and arguments.line is None:
                kept = [failures.find(arguments.name)] if arguments.name else failures.all()
                print_json([failure.plain() for failure in kept])
                return 0
            failure = failures.find(arguments.name)
            if arguments.json:
                return _told(failures, failure, arguments.line)
            return _shown(failures, failure, arguments.line)


def _words(failure: Failure, command: str | None) -> tuple[str, ...]:
    """Return the step's shell, with a command or to be talked to."""
    return (*failure.shell, command) if command is not None else failure.shell[:1]


def _shown(failures: Failures, failure: Failure, command: str | None) -> int:
    from ringzero.cli import session

    if command == "":
        raise InvalidValueError("--command is empty", hint="--command 'cat config.log'")
    machine = failures.machine(failure)
    interactive = command is None and sys.stdin.isatty()
    if command is None:
        print(f"ringzero: {failure.instruction!r} ended with status {failure.status}; what is "
              "changed here is thrown away", file=sys.stderr)  # fmt: skip
    return session.run(
        machine.config,
        words=failures.words(failure, _words(failure, command)),
        terminal=interactive,
        build=lambda *_, **__: machine,
    )


def _told(failures: Failures, failure: Failure, command: str) -> int:
    machine = failures.machine(failure)
    outputs = io.BytesIO(), io.BytesIO()
    try:
        machine.start()
        running = machine.agent.run(
            failures.words(failure, _words(failure, command)),
            on_stdout=outputs[0].write,
            on_stderr=outputs[1].write,
        )
        status = running.wait()
    finally:
        machine.stop()
    stdout, stderr = (output.getvalue().decode("utf-8", "replace") for output in outputs)
    print_json({"name": failure.name, "status": status, "stdout": stdout, "stderr": stderr})
    return status or 0
