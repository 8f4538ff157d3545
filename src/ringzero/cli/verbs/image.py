"""`ringzero image`: the guests' images in the cache, ringzero's own and those of containers."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ringzero.cli import building
from ringzero.cli.verb import VERBS, Verb, print_json

if TYPE_CHECKING:
    from ringzero.api.values import ImageSummary
    from ringzero.vm.saved.templates import Entry


@VERBS.register("image")
class Image(Verb):
    summary = "build, list, inspect and remove guest images"
    examples = """\
  ringzero image build -t web:1 .     from the Vmfile (or Dockerfile) of this directory
  ringzero image build                the default guest, if it is not there yet
  ringzero image build --refresh      the same from the newest Debian packages
  ringzero image build full           as micro, with the kernel of real machines
  ringzero image ls                   ours, and those of containers (`ringzero pull`)
  ringzero image inspect debian:12    what it runs, its layers, where its root file system is
  ringzero image tag web:1 registry.example/web:1
  ringzero image history web:1        its steps, and the size of each one's layer
  ringzero image save web:1 ./layout  the OCI image layout, which `run oci:./layout` takes
  ringzero image rm micro debian:12
  ringzero image rm --force debian:12 though a machine still needs it
  ringzero image prune                images without a name, and layers that none needs
"""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the actions and their flags."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        build = actions.add_parser(
            "build", help="build an image from a Vmfile, or put one of ringzero's own together"
        )
        build.add_argument(
            "name",
            nargs="?",
            default="micro",
            metavar="DIR|NAME",
            help="the directory with the Vmfile; or the name of an own image (micro)",
        )
        build.add_argument("--refresh", action="store_true", help="ask for newer packages")
        building.configure(build)
        listing = actions.add_parser("ls", help="list the images in the cache")
        look = actions.add_parser("inspect", help="tell all about images, as JSON")
        look.add_argument("name", nargs="+", help="a name, or the beginning of a digest")
        removal = actions.add_parser("rm", help="remove images from the cache")
        removal.add_argument("name", nargs="+", help="a name, or the beginning of a digest")
        removal.add_argument(
            "--force", "-f", action="store_true", help="also those that machines need to start"
        )
        prune = actions.add_parser("prune", help="remove what no name leads to")
        prune.add_argument("--builds", action="store_true", help="and what builds have kept")
        tag = actions.add_parser("tag", help="give an image one more name")
        tag.add_argument("name", metavar="IMAGE", help="a name, or the beginning of a digest")
        tag.add_argument("target", metavar="NAME[:TAG]", help="what it is called, too")
        history = actions.add_parser("history", help="tell the steps that made an image")
        history.add_argument("name", metavar="IMAGE", help="a name, or the beginning of a digest")
        save = actions.add_parser("save", help="write an image as a layout: run oci:DIR takes it")
        save.add_argument("name", metavar="IMAGE", help="a name, or the beginning of a digest")
        save.add_argument("target", metavar="DIR", help="a new directory")
        for action in (build, listing, look, removal, prune, tag, history, save):
            action.add_argument("--json", action="store_true")

    def execute(self, arguments: argparse.Namespace) -> int:
        """Do the action."""
        from ringzero.image import stored

        as_json = arguments.json
        if arguments.action == "build" and building.is_build(arguments):
            _show([building.build(arguments)], as_json)
        elif arguments.action == "build":
            from ringzero.host.progress import Progress
            from ringzero.image.names import IMAGES

            make = IMAGES.get(arguments.name)
            made: Any = make(progress=Progress(), refresh=arguments.refresh)
            _show([stored.own_summary(made)], as_json)
        elif arguments.action == "ls":
            if as_json:
                print_json(stored.images())
            else:
                _list(stored.images())
        elif arguments.action == "inspect":
            found = [image for name in arguments.name for image in stored.find(name)]
            print_json(found)
        elif arguments.action == "rm":
            from ringzero.control.host.directory import users_of

            users = stored.NOBODY if arguments.force else users_of
            gone = [image for name in arguments.name for image in stored.remove(name, users)]
            _show(gone, as_json)
        elif arguments.action in ("tag", "history", "save"):
            _of_one(arguments)
        else:
            from ringzero.control.host.directory import users_of

            gone, freed = stored.prune(users_of)
            freed += building.prune() if arguments.builds else 0
            if as_json:
                print_json({"images": gone, "freed": freed})
            else:
                from ringzero.units import format_size

                _show(gone, as_json=False)
                print(f"{format_size(freed)} freed")
        return 0


def _of_one(arguments: argparse.Namespace) -> None:
    """Do what is about one image of the store."""
    from pathlib import Path

    from ringzero.image.oci import push
    from ringzero.image.oci.reference import parse_reference
    from ringzero.image.oci.store import Store
    from ringzero.settings import CACHE_DIR

    cache = CACHE_DIR.get()
    image = push.find(arguments.name, cache)
    if arguments.action == "tag":
        name, store = parse_reference(arguments.target), Store(cache)
        with store.lock():
            store.set_name(name, image.digest)
        _show([i.summary() for i in store.find(arguments.target)], arguments.json)
    elif arguments.action == "save":
        push.save(image, Path(arguments.target), arguments.name, cache=cache)
        if arguments.json:
            print_json({"path": arguments.target, "digest": image.digest})
    else:
        _show_history(push.history(image, cache), arguments.json)


def _show_history(steps: list[dict[str, Any]], as_json: bool) -> None:
    from ringzero.units import format_size

    if as_json:
        print_json(steps)
        return
    for step in steps:
        size = format_size(step["size"]) if step["layer"] else "-"
        print(f"{step['created']:20}  {size:>10}  {' '.join(step['instruction'].split())[:90]}")


def _show(images: Iterable[ImageSummary], as_json: bool) -> None:
    from ringzero.units import format_size

    if as_json:
        print_json(list(images))
        return
    for image in images:
        names = ", ".join(image["names"] or [image["name"]])
        digest = image["digest"].removeprefix("sha256:")[:12]
        print(f"{names}  {digest}  {format_size(image['size'])}")
        for package in image.get("packages", ()):
            print(f"  {package}")


def _list(images: Sequence[ImageSummary]) -> None:
    """Print images, and what the saved starts of each take."""
    from ringzero.vm.saved.templates import Templates

    left = Templates().entries()
    for image in images:
        _show([image], as_json=False)
        _show_starts([entry for entry in left if _is_of(entry, image)], "")
        left = [entry for entry in left if not _is_of(entry, image)]
    _show_starts(left, " of no image here (ringzero template ls)")


def _is_of(entry: Entry, image: ImageSummary) -> bool:
    """Whether a template is of an image: of its root, or of its kernel where it has none."""
    of = entry.description
    disks = [device["path"] for device in of.get("devices", ()) if device["kind"] == "disk"]
    if image["kind"] == "container":
        return image["root"] in disks
    return not disks and of.get("kernel") == image["kernel"]


def _show_starts(entries: Sequence[Entry], what: str) -> None:
    from ringzero.units import format_size

    if entries:
        count = f"{len(entries)} saved start{'s' if len(entries) > 1 else ''}"
        print(f"  {count}{what}, {format_size(sum(entry.size for entry in entries))}")
