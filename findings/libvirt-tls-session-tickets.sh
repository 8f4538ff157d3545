#!/bin/sh
# libvirt 9.0.0's client (Debian 12, libvirt-clients and libvirt0 9.0.0-4+deb12u2, libgnutls30 3.7.9-2+deb12u7; their other
# dependencies are the host's), and a server that has TLS by OpenSSL 3 with its defaults (Python's ssl).
#
# What: virsh connects by TLS 1.3. Behind the handshake the server sends two session tickets, as OpenSSL does by
# default, and then the byte 1, with which libvirt's servers say that the client's certificate was taken.
#
# Expected: tickets may come at any time behind the handshake (RFC 8446, 4.6.1), so the client goes on with its first
# call, AUTH_LIST (procedure 66), as it does without tickets.
# Real: the client waits until there is something to read, reads once, gets nothing but the tickets, and gives up:
# "Unable to read TLS confirmation: Resource temporarily unavailable". libvirt's own servers send no tickets.
set -eu
VERSION='9.0.0-4+deb12u2'
GNUTLS='3.7.9-2+deb12u7'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -q -o APT::Sandbox::User=root "libvirt-clients=$VERSION" "libvirt0=$VERSION" "libgnutls30=$GNUTLS" >/dev/null
for package in ./*.deb; do dpkg -x "$package" package; done
LD_LIBRARY_PATH="$work/package/usr/lib/$(uname -m)-linux-gnu"
export LD_LIBRARY_PATH
new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
sign() {
    # shellcheck disable=SC2086 # a list of words
    openssl req $new -subj "/CN=$1" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf 'subjectAltName=DNS:localhost\nextendedKeyUsage=%s\n' "$2" >"$1.cnf"
    openssl x509 -req -in "$1.csr" -days 2 -extfile "$1.cnf" -CA ca.pem -CAkey ca.key -CAcreateserial -out "$1.pem" 2>/dev/null
}
# shellcheck disable=SC2086 # a list of words
openssl req -x509 $new -days 2 -subj /CN=ca -keyout ca.key -out ca.pem 2>/dev/null
sign server serverAuth
sign client clientAuth
mkdir pki
cp ca.pem pki/cacert.pem
cp client.pem pki/clientcert.pem
cp client.key pki/clientkey.pem
cat >server.py <<'SERVER'
import socket, ssl, struct, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
context.load_verify_locations("ca.pem")
context.verify_mode = ssl.CERT_REQUIRED
if sys.argv[1] == "none":
    context.num_tickets = 0
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
link = context.wrap_socket(listener.accept()[0], server_side=True)
link.settimeout(10)
version = link.version()
try:
    link.sendall(b"\1")
    data = link.recv(28)
except OSError:
    data = b""
call = f"procedure {struct.unpack('>7I', data)[3]}" if len(data) == 28 else "nothing"
print(f"{version}, {context.num_tickets} tickets: the client asks for {call}", flush=True)
SERVER
for tickets in default none; do
    mkfifo port
    python3 server.py "$tickets" >port &
    {
        read -r number
        package/usr/bin/virsh -c "qemu+tls://localhost:$number/system?pkipath=$work/pki" list 2>&1 |
            grep -o 'Unable to read TLS confirmation: .*' || true
        cat
    } <port
    wait
    rm port
done | tee seen
# Output seen:
#   Unable to read TLS confirmation: Resource temporarily unavailable
#   TLSv1.3, 2 tickets: the client asks for nothing
#   TLSv1.3, 0 tickets: the client asks for procedure 66
grep -qx 'Unable to read TLS confirmation: Resource temporarily unavailable' seen
grep -qx 'TLSv1.3, 2 tickets: the client asks for nothing' seen
grep -qx 'TLSv1.3, 0 tickets: the client asks for procedure 66' seen
echo 'as described'
