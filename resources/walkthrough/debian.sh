#!/bin/sh -e
# debian.sh: makes a machine with a stock Debian and SQLite in this folder; as root, on Debian or Ubuntu. In Debian it
# puts the two files of the example, orders and its unit, and nothing else.
here=$(dirname "$(readlink -f "$0")")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mmdebstrap --variant=important --include=linux-image-cloud-amd64,sqlite3 trixie "$root" "$@"
install "$here/orders" "$root/usr/local/sbin/"
install -m 644 "$here/orders@.service" "$root/etc/systemd/system/"
cp "$root"/boot/vmlinuz-* vmlinuz
cp "$root"/boot/initrd.img-* initrd.img
truncate -s 1G debian.img
mkfs.ext4 -q -d "$root" debian.img
truncate -s 64M data.img
mkfs.ext4 -q data.img
cp "$here/vm.toml" "$here/check" .
