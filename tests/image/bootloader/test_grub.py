"""Menus as distributions' tools write them, and scripts that no tool writes."""

import contextlib
import os
import random
import time

import pytest

from ringzero.errors import FileSystemError
from ringzero.image.bootloader import grub
from tests.image.bootloader.made import volume, volumes

FUZZ = int(os.environ.get("RINGZERO_FUZZ", "1"))
# What grub-mkconfig 2.06 writes on Debian 12, shortened.
DEBIAN = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod efi_gop
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
fi
if loadfont $font ; then
  set gfxmode=auto
fi
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-aa' {
\tload_video
\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
\tsearch --no-floppy --fs-uuid --set=root aa-bb
\techo\t'Loading Linux 6.1.0-1 ...'
\tlinux\t/boot/vmlinuz-6.1.0-1 root=UUID=aa-bb ro  console=tty0 console=ttyS0,115200
\tinitrd\t/boot/initrd.img-6.1.0-1
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-aa' {
\tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-1' --class debian $menuentry_id_option 'one' {
\t\tlinux\t/boot/vmlinuz-6.1.0-1 root=UUID=aa-bb ro
\t\tinitrd\t/boot/initrd.img-6.1.0-1
\t}
\tmenuentry 'Debian GNU/Linux, with Linux 6.1.0-1 (recovery mode)' $menuentry_id_option 'rec' {
\t\tlinux\t/boot/vmlinuz-6.1.0-1 root=UUID=aa-bb ro single dis_ucode_ldr
\t\tinitrd\t/boot/initrd.img-6.1.0-1
\t}
}
menuentry 'UEFI Firmware Settings' $menuentry_id_option 'uefi-firmware' {
\tfwsetup
}
"""
# Fedora 40: the menu is made of the specification's entries.
FEDORA = """
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
else
   set default="${saved_entry}"
fi
search --no-floppy --fs-uuid --set=root bo-ot
set boot=${root}
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=UUID=ro-ot ro "
fi
insmod blscfg
blscfg
if [ "${menu_auto_hide}" ]; then true; fi
"""
ENTRY = """title Fedora Linux ({0}) 40 (Cloud Edition)
version {0}
linux /vmlinuz-{0}
initrd /initramfs-{0}.img $tuned_initrd
options $kernelopts no_timer_check console=tty1 console=ttyS0,115200n8
grub_users $grub_users
"""


def debian(default="0", **more):
    files = {
        "boot/grub/grub.cfg": DEBIAN.replace("DEFAULT", default),
        "boot/vmlinuz-6.1.0-1": b"kernel",
        "boot/initrd.img-6.1.0-1": b"initrd",
        **more,
    }
    return volumes(volume(3, files, uuid="AA-bb"))


def chosen(found):
    (entry,) = [entry for entry in found if entry.default]
    return entry


def test_debian():
    found = grub.find(debian())
    assert [e.id for e in found] == ["gnulinux-simple-aa", "one", "rec"]
    first = chosen(found)
    assert first is found[0]
    assert first.kernel.path == "/boot/vmlinuz-6.1.0-1"
    assert [place.path for place in first.initrds] == ["/boot/initrd.img-6.1.0-1"]
    assert first.command_line == "root=UUID=aa-bb ro console=tty0 console=ttyS0,115200"
    advanced = "Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-1"
    assert found[1].title == advanced


@pytest.mark.parametrize(
    ("default", "id_"),
    [
        ("1>1", "rec"),
        ("gnulinux-advanced-aa>rec", "rec"),
        ("gnulinux-advanced-aa>one", "one"),
        ("1", "one"),
        ("Debian GNU/Linux", "gnulinux-simple-aa"),
        ("no such", "gnulinux-simple-aa"),
        ("99", "gnulinux-simple-aa"),
        ("2", "gnulinux-simple-aa"),
    ],
)
def test_the_default_entry(default, id_):
    assert chosen(grub.find(debian(default))).id == id_


def test_the_next_entry_of_grubenv_is_taken():
    block = "# GRUB Environment Block\nnext_entry=1>1\n" + "#" * 900
    assert chosen(grub.find(debian(**{"boot/grub/grubenv": block}))).id == "rec"


def test_fedora_with_a_boot_partition():
    boot = volume(
        2,
        {
            "grub2/grub.cfg": FEDORA,
            "grub2/grubenv": "# GRUB\nsaved_entry=m-6.8.5\nkernelopts=root=UUID=ro-ot ro\n",
            "loader/entries/m-6.8.5.conf": ENTRY.format("6.8.5"),
            "loader/entries/m-6.10.1.conf": ENTRY.format("6.10.1"),
            "loader/entries/m-0-rescue.conf": ENTRY.format("0-rescue"),
            "vmlinuz-6.8.5": b"",
            "vmlinuz-6.10.1": b"",
        },
        uuid="bo-ot",
    )
    root = volume(3, {"etc/os-release": ""}, uuid="ro-ot")
    found = grub.find(volumes(root, boot))
    assert [e.id for e in found] == ["m-6.10.1", "m-6.8.5", "m-0-rescue"]
    entry = chosen(found)
    assert entry.id == "m-6.8.5"
    assert entry.kernel.volume is boot
    assert entry.kernel.path == "/vmlinuz-6.8.5"
    assert [place.path for place in entry.initrds] == ["/initramfs-6.8.5.img"]
    assert entry.command_line.startswith("root=UUID=ro-ot ro no_timer_check")


def test_a_stub_on_the_efi_partition_leads_on():
    esp = volume(
        1,
        {
            "EFI/debian/grub.cfg": "search.fs_uuid aa-bb root hd0,gpt9\n"
            "set prefix=($root)'/boot/other'\nconfigfile $prefix/grub.cfg\n"
        },
    )
    root = volume(2, {"boot/other/grub.cfg": DEBIAN}, uuid="aa-bb")
    found = grub.find(volumes(root, esp))
    assert chosen(found).kernel.volume is root


def run(script, **files):
    found = grub.find(volumes(volume(1, {"boot/grub/grub.cfg": script, **files}, uuid="u")))
    return chosen(found).command_line if found else None


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ('set a=b\nset c="$a ${a}"', "b b"),
        ("set c='$a'", "$a"),
        ("set c=x\\ y", "x y"),
        ("if [ 2 -gt 1 -a ! -n '' ]; then c=yes; else c=no; fi", "yes"),
        ("if [ 1 = 2 -o x = x ]; then set c=or; fi", "or"),
        ("if false; then c=1; elif true; then c=2; else c=3; fi", "2"),
        ("if ! false; then c=not; fi", "not"),
        ('for i in a b c; do c="$c$i"; done', "abc"),
        ("set n=x\nwhile [ $n != xxx ]; do set n=x$n; done\nset c=$n", "xxx"),
        ("until true; do c=never; done; c=once", "once"),
        ("function f {\n set c=\"$1-$2\"\n}\nf one 'two three'", "one-two three"),
        ("if [ -f /there ]; then c=file; fi", "file"),
        ("if [ -d /boot/grub -a -s /there ]; then c=both; fi", "both"),
        ("if [ -e (hd0,gpt1)/there ]; then c=device; fi", "device"),
        ("if [ -e (hd0,gpt7)/there ]; then c=wrong; else c=gone; fi", "gone"),
        ("source /more.cfg", "sourced"),
        ("probe --set=c --fs-uuid $root", "u"),
        ("# c=1\nc=a#b # rest", "a#b"),
        ("unknown_command with words; c=on", "on"),
        ("set c=long\\\ner", "longer"),
    ],
)
def test_scripts(before, line):
    script = before + "\nmenuentry x {\n linux /k $c\n}\n"
    assert run(script, **{"there": "x", "more.cfg": "c=sourced", "k": ""}) == line


@pytest.mark.parametrize(
    "script",
    [
        "while true; do a=1; done",
        "function f { f; }\nf",
        "source /boot/grub/grub.cfg",
        "configfile /boot/grub/grub.cfg",
        "if true; then",
        "menuentry x {",
        "}",
        "if " * 500,
        "menuentry x { " * 500,
        "for a in b c d e f g h i j k; do " * 10 + "true; " + "done; " * 10,
        'for a in 1 2 3 4 5 6 7 8; do b="$b$b$b$b$b$b x"; done; while true; do c=$b; done',
        "submenu x { source /boot/grub/grub.cfg\n }",
        "menuentry x { linux /k; }\n" * 2000,
    ],
)
def test_hostile_scripts_end(script):
    began = time.process_time()
    with contextlib.suppress(FileSystemError):
        run(script)
    assert time.process_time() - began < 20


def test_fuzz_any_text_is_read_or_refused():
    words = DEBIAN.replace("\n", " \n ").split(" ")
    for seed in range(150 * FUZZ):
        random_ = random.Random(seed)
        script = " ".join(random_.choices([*words, "{", "}", "'", '"', "$", "\\", ";"], k=80))
        with contextlib.suppress(FileSystemError):
            run(script)
