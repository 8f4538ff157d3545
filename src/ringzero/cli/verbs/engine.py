"""`ringzero engine`: compile the software engine ahead of the first start, or remove it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ringzero.cli.cpu_models import SHOW_MODELS, guest_of, guests_of_models, show_models
from ringzero.cli.verb import AS_IS, THERE, VERBS, Away, Verb, print_json


@VERBS.register("engine")
class Engine(Verb):
    summary = "compile the software engine ahead of time, look at it, remove it"
    away = Away(AS_IS, files={"output": THERE})
    examples = """\
  ringzero engine build                    for every CPU since 2009: bake it into an image
  ringzero engine build --target host      for this host's CPU, as a first start does
  ringzero engine build --target x86-64-v3 --output engines/x86-64-v3
  ringzero engine build --cpu max          for guests with --cpu x86-64-v3 or max, too
  ringzero engine status
  ringzero engine rm                       engines, objects, saved translations
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions and their flags."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        build = actions.add_parser("build", help="compile it, if it is not there yet")
        build.add_argument(
            "--target",
            default="x86-64-v2",
            metavar="CPU",
            help="host, x86-64-v2 (default) or x86-64-v3: the CPUs that it will run on",
        )
        build.add_argument(
            "--cpu",
            metavar="MODEL",
            default="x86-64-v2",
            help="the CPU model of guests: x86-64-v2 (default); help: list them",
        )
        build.add_argument(
            "--output", type=Path, metavar="DIR", help="put it there (default: the cache)"
        )
        build.add_argument("--json", action="store_true")
        status = actions.add_parser(
            "status", help="say which engines are there, the used one first"
        )
        status.add_argument("--json", action="store_true")
        removal = actions.add_parser("rm", help="remove what is compiled from the cache")
        removal.add_argument("--json", action="store_true")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action; `status` ends with 1 where a start would have to compile first."""
        from ringzero.jit import build

        if arguments.action == "rm":
            gone = build.remove()
            if arguments.json:
                print_json([str(path) for path in gone])
            for path in gone if not arguments.json else ():
                print(f"removed {path}")
            return 0
        if arguments.action == "build":
            if arguments.cpu == SHOW_MODELS:
                show_models()
                return 0
            engines = [_build(arguments.target, arguments.output, arguments.cpu)]
        else:
            engines = list(build.compiled())
            if engines:
                engines += [
                    engine
                    for guest in sorted(guests_of_models() - {build.DEFAULT_GUEST})
                    for engine in build.compiled(guest)
                ]
        if arguments.json:
            print_json([_described(engine) for engine in engines])
        elif engines:
            for engine in engines:
                further = "" if engine.guest == build.DEFAULT_GUEST else f"  {engine.guest}"
                print(f"{engine.target}  {engine.key[:12]}  {engine.directory}{further}")
        else:
            print("no engine is compiled; `ringzero engine build` does it, or the first start")
        return 0 if engines else 1


def _build(name: str, output: Path | None, model: str) -> Any:
    from ringzero.host.progress import Progress
    from ringzero.jit import build
    from ringzero.jit.compile.llvm import target_named

    target = target_named(name)
    guest = guest_of(model)
    found = None if output else build.kept(target, guest)
    if found is not None:
        return found
    return build.build(target, Progress(), output, guest)


def _described(engine: Any) -> dict[str, str]:
    return {
        "target": engine.target,
        "guest": engine.guest,
        "key": engine.key,
        "directory": str(engine.directory),
    }
