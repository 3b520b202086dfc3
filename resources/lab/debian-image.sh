#!/bin/bash
# debian-image.sh DEBIAN ROOT OUT: makes a disk with the stock Debian guest and the modules of ROOT's kernel. The small
# guest initramfs boots it if the kernel command line has root=/dev/vda.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); debian=$1; root=$2; out=$3
version=$(cat "$root/boot/version")
rm -rf "$debian/usr/lib/modules"; mkdir -p "$debian/usr/lib/modules"
cp -rl "$root/usr/lib/modules/$version" "$debian/usr/lib/modules/"
install -m 755 "$here/guest/agent" "$debian/usr/local/sbin/agent"
install -m 755 "$here/debian/button-watched" "$debian/usr/local/sbin/"
install -m 644 "$here/debian/lab-agent.service" "$debian/etc/systemd/system/"
chroot "$debian" systemctl --quiet enable lab-agent.service
chroot "$debian" systemctl --quiet mask serial-getty@ttyS0.service
mkdir -p "$debian/etc/systemd/system.conf.d"
printf '[Manager]\nShowStatus=no\n' >"$debian/etc/systemd/system.conf.d/quiet.conf"
echo debian >"$debian/etc/hostname"
rm -f "$out"; truncate -s 1G "$out"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0 -m 0 -d "$debian" "$out"
