"""What a disk needs beside an image's files to boot by itself: of Debian's packages, in the cache.

    export/<recipe>/vmlinuz         the kernel of linux-image-amd64: with drivers of real machines
    export/<recipe>/initrd          busybox, drivers, and `guest/disk` as its /init
    export/<recipe>/grub/NAME       what of grub-pc-bin a BIOS needs (`grub`)
    export/<recipe>/BOOTX64.EFI     GRUB for UEFI, whole, of grub-efi-amd64-bin
    export/<recipe>/manifest.json   the packages

It is made once for each version of what is put together here; `refresh` asks for newer packages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ringzero.digest import blake2b
from ringzero.errors import GuestImageError
from ringzero.host.files import atomic_directory, locked, remove_tree
from ringzero.host.progress import QUIET, Progress
from ringzero.image import archives, deb, micro
from ringzero.image.export import grub
from ringzero.image.guest import become, launch
from ringzero.image.modules import Module, with_dependencies
from ringzero.image.rootfs import Rootfs
from ringzero.records import record

KERNEL = "linux-image-amd64"
_PACKAGES = ("busybox-static", "grub-pc-bin", "grub-efi-amd64-bin")
# Disks and networks of QEMU and KVM (virtio, and what they imitate), VirtualBox, VMware, Hyper-V,
# Xen and NVMe; the power button.
DRIVERS = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_rng"),
    *("virtio_balloon", "virtio_console", "vmw_vsock_virtio_transport", "virtiofs"),
    *("9p", "9pnet_virtio", "pvpanic_mmio"),
    *("ahci", "ata_piix", "sd_mod", "nvme", "mptspi", "mptsas", "vmw_pvscsi"),
    *("hv_vmbus", "hv_storvsc", "hv_netvsc", "hv_utils", "xen_blkfront", "xen_netfront"),
    *("e1000", "e1000e", "vmxnet3", "pcnet32", "8139cp"),
    *("button", "evdev", "ext4", "crc32c_generic", "crc32c_intel", "overlay", "loop"),
)
# Functions that the first process of an exported disk has in common with the default guest's.
_SHARED = ("supervise", "execute", "start", "as_wanted", "find_user", "refuse")
_FORMAT = 1
_KERNEL, _INITRD, _EFI, _MANIFEST = "vmlinuz", "initrd", "BOOTX64.EFI", "manifest.json"
_MONOLITHIC = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
_PC = "usr/lib/grub/i386-pc/"


@record
class Kit:
    """The files, and which packages they came from (NAME=VERSION)."""

    place: Path
    packages: tuple[str, ...]

    @property
    def kernel(self) -> bytes:
        """A bzImage."""
        return (self.place / _KERNEL).read_bytes()

    @property
    def initrd(self) -> bytes:
        """A newc archive, behind which another one may stand."""
        return (self.place / _INITRD).read_bytes()

    @property
    def efi(self) -> bytes:
        """GRUB for UEFI, which reads EFI/debian/grub.cfg of the partition that it comes from."""
        return (self.place / _EFI).read_bytes()

    def grub(self) -> dict[str, bytes]:
        """Return the files of GRUB for a BIOS, by name."""
        return {path.name: path.read_bytes() for path in (self.place / "grub").iterdir()}


def ensure(cache: Path, progress: Progress = QUIET, *, refresh: bool = False) -> Kit:
    """Return the kit from the cache, made first where it is not there, or with `refresh`.

    Raises what `archives.Archive` raises, and GuestImageError.
    """
    place = cache / "export" / _recipe()
    with locked(cache / "export" / "lock", progress):
        found = None if refresh else _load(place)
        if found is None:
            _build(place, cache, progress, refresh)
            found = _load(place)
    if found is None:
        raise GuestImageError(
            "what exported disks boot with vanished while it was made", path=place
        )
    return found


def _recipe() -> str:
    inputs = [_FORMAT, KERNEL, _PACKAGES, DRIVERS, grub.MODULES, _script().decode()]
    inputs += [launch.build().hex(), become.build().hex(), micro.script("dhcp").decode()]
    return blake2b(json.dumps(inputs).encode(), digest_size=12).hexdigest()


def _load(place: Path) -> Kit | None:
    try:
        told = json.loads((place / _MANIFEST).read_text())
        whole = all((place / n).stat().st_size == size for n, size in told["sizes"].items())
        return Kit(place, tuple(told["packages"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _build(place: Path, cache: Path, progress: Progress, refresh: bool) -> None:
    apt = archives.debian(cache=cache, progress=progress)
    if refresh:
        apt.refresh(max_age=0)
    names = [micro.real_kernel(apt, KERNEL), *_PACKAGES]
    packages = [p for name in names for p in apt.resolve([name], dependencies=False)]
    kernel, busybox, pc, efi = apt.download(packages)
    remove_tree(place)
    with progress.step("preparing what exported disks boot with"), atomic_directory(place) as work:
        image, modules = micro.split_kernel(kernel)
        (work / _KERNEL).write_bytes(image)
        with (work / _INITRD).open("wb") as file:
            _tree(busybox, modules).write_cpio(file)
        (work / "grub").mkdir()
        for name, data in _files(pc, _PC):
            if "/" not in name and name.endswith((".img", ".mod", ".lst")):
                (work / "grub" / name).write_bytes(data)
        for _, data in _files(efi, _MONOLITHIC):
            (work / _EFI).write_bytes(data)
        sizes = {n: (work / n).stat().st_size for n in (_KERNEL, _INITRD, _EFI)}
        told = {"packages": [f"{p.name}={p.version}" for p in packages], "sizes": sizes}
        (work / _MANIFEST).write_text(json.dumps(told, indent=1) + "\n")


def _files(package: Path, begin: str) -> Iterable[tuple[str, bytes]]:
    """Yield the files of a package whose paths begin so, by what is left of these."""
    for info, data in deb.files(package):
        path = info.name.removeprefix("./")
        if info.isreg() and path.startswith(begin):
            yield path.removeprefix(begin), data


def _tree(busybox: Path, modules: Mapping[str, Module]) -> Rootfs:
    """Return the initrd's files."""
    tree = Rootfs()
    for info, data in deb.files(busybox):
        if info.name.removeprefix("./") in ("bin/busybox", "usr/bin/busybox"):
            tree.add_file("bin/busybox", data, mode=0o755)
    for name in ("dev", "proc", "sys", "run", "mnt"):
        tree.add_directory(name)
    tree.add_device("dev/console", "c", 5, 1, mode=0o600)
    tree.add_device("dev/null", "c", 1, 3, mode=0o666)
    tree.add_file("init", _script(), mode=0o755)
    tree.add_file("sbin/dhcp", micro.script("dhcp"), mode=0o755)
    tree.add_file("sbin/launch", launch.build(), mode=0o755)
    tree.add_file("sbin/become", become.build(), mode=0o755)
    # Where the kernel looks for it.
    tree.add_link("sbin/modprobe", "../bin/busybox")
    for applet in micro.applets(tree["bin/busybox"].data):
        if f"bin/{applet}" not in tree and f"sbin/{applet}" not in tree:
            tree.add_link(f"bin/{applet}", "busybox")
    wanted = with_dependencies(DRIVERS, modules)
    base = micro.add_modules(tree, wanted)
    aliases = [f"alias {alias} {m.name}\n" for m in wanted for alias in m.aliases]
    tree.add_file(f"{base}modules.alias", "".join(aliases).encode())
    return tree


def _script() -> bytes:
    """Return the first process's script, with the functions of the default guest's in it."""
    init, own = micro.script("init").decode(), micro.script("disk").decode()
    shared = "\n".join(_function(init, name) for name in _SHARED)
    head, line, rest = own.partition('\nif [ "$1" != root ]; then\n')
    return f"{head}\n{shared}{line}{rest}".encode()


def _function(script: str, name: str) -> str:
    """Return a shell function of a script, whose closing brace is on a line of its own."""
    found = re.search(rf"^{name}\(\) \{{\n.*?^\}}\n", script, re.MULTILINE | re.DOTALL)
    if found is None:
        raise GuestImageError(f"the guest's script has no function {name}")
    return found[0]
