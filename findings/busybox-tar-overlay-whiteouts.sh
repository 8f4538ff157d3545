#!/bin/sh
# busybox 1.35.0 (Debian 12, busybox-static 1:1.35.0-4+deb12u1+b1) and Linux's overlay file system (seen on 6.18; whiteouts
# have shared an inode since 5.8).
#
# What: three files of a lower directory are removed through an overlay. The upper directory then holds a whiteout
# for each, a character device 0:0 (overlayfs.rst, "whiteouts and opaque directories"). It is packed by tar.
#
# Expected: three members of type 3 (character device) with the numbers 0,0, as GNU tar 1.34 writes them: who makes a
# layer of the directory finds each whiteout by its own member.
# Real: the kernel makes all whiteouts of a mount links of one inode. busybox's tar writes the first as a device and
# the others as hard links to it (type 1), so that two of the three removals read as "a link to a file c": a reader
# that looks for devices misses them, and one that follows the link refuses the archive once the first is taken out.
set -eu
VERSION='1:1.35.0-4+deb12u1+b1'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -q -o APT::Sandbox::User=root "busybox-static=$VERSION" >/dev/null
dpkg -x busybox-static_*.deb package
cat >pack <<'PACK'
set -eu
mount -t tmpfs tmpfs room
cd room
mkdir lower upper work merged
touch lower/a lower/b lower/c
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr overlay merged
rm merged/a merged/b merged/c
stat -c '%n: %F %t:%T, %h links' upper/a
../package/bin/busybox tar -c -f busybox.tar -C upper .
tar -c -f gnu.tar -C upper .
for archive in busybox gnu; do
    # The type is the 157th byte of a member's header.
    python3 - "$archive" <<'READ'
import sys, tarfile
with tarfile.open(f"{sys.argv[1]}.tar") as archive:
    kinds = sorted(member.type.decode() for member in archive if member.name != ".")
print(f"{sys.argv[1]}: types {' '.join(kinds)}")
READ
done
PACK
mkdir room
unshare --user --map-root-user --mount sh pack | tee seen
# Output seen:
#   upper/a: character special file 0:0, 4 links
#   busybox: types 1 1 3
#   gnu: types 3 3 3
grep -qx 'upper/a: character special file 0:0, 4 links' seen
grep -qx 'busybox: types 1 1 3' seen
grep -qx 'gnu: types 3 3 3' seen
echo 'as described'
