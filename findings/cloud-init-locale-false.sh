#!/bin/sh
# cloud-init 22.4.2 (Debian 12, 22.4.2-1+deb12u4), with the Python packages that it asks for, pinned below.
#
# What: user-data that says "locale: false". The module that sets the locale takes that as "leave it alone"
# (config/cc_locale.py asks util.is_false, and says "disabled by config").
#
# Expected: `cloud-init schema` finds it valid, and a boot with it has no recoverable errors.
# Real: the schema of the same version allows strings alone, so the file is invalid, and a boot that does what was asked
# for ends with a warning. "locale: 'false'" in quotes is valid, and does the same.
set -eu
VERSION='22.4.2-1+deb12u4'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -q -o APT::Sandbox::User=root "cloud-init=$VERSION" >/dev/null
dpkg -x cloud-init_*.deb package
python3 -m venv --without-pip venv && python3 -m pip --python venv/bin/python install -q \
    jsonschema==4.17.3 PyYAML==6.0.2 configobj==5.0.9 oauthlib==3.2.2 requests==2.32.3 jsonpatch==1.33 Jinja2==3.1.6
export PYTHONPATH="$work/package/usr/lib/python3/dist-packages"
check() {
    printf '#cloud-config\nlocale: %s\n' "$1" >user-data
    printf '%s: ' "$1"
    venv/bin/python -m cloudinit.cmd.main schema --config-file user-data 2>&1 | grep -o -e 'Valid cloud-config' -e 'locale: .*'
}
{
    check false
    check "'false'"
    venv/bin/python -c 'from cloudinit.util import is_false; print("is_false:", is_false(False), is_false("false"))'
} | tee seen
# Output seen:
#   false: locale: False is not of type 'string'
#   'false': Valid cloud-config
#   is_false: True True
grep -q "^false: locale: False is not of type 'string'" seen
grep -qx "'false': Valid cloud-config" seen
grep -qx 'is_false: True True' seen
echo 'as described'
