for relation in '1.0 lt 1.0-1' '1:0 gt 9' '1.0~rc1 lt 1.0' '2.0-1 eq 2.0-1' '1.0 gt 1.0+b1'; do
    dpkg --compare-versions $relation && echo "$relation"
done
mkdir -p package/DEBIAN package/usr
cp text package/usr
cat > package/DEBIAN/control <<END
Package: package
Version: 1
Architecture: all
Maintainer: nobody
Description: made by a test
END
find package -exec touch -d @1700000000 {} +
chmod -R u=rwX,go=rX package
SOURCE_DATE_EPOCH=1700000000 dpkg-deb --root-owner-group -Zxz -b package package.deb
dpkg-deb -f package.deb
dpkg-deb -c package.deb
sha256sum package.deb
