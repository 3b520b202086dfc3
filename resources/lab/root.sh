#!/bin/bash
# root.sh OUT: the userland of the lab's host (L1) and the kernel that both L1 and its guests boot, as a folder.
# The same folder later lends its QEMU to this machine, so that every machine runs the lab on one known version.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); out=$1; mirror=$("$here/mirror.sh")
# From QEMU 10.2 on: before, VMRUN changes the word of pending interrupts without a lock.
newer_qemu='Package: qemu-* seabios ipxe-qemu\nPin: release n=trixie-backports\nPin-Priority: 900\n'
packages=(udev kmod util-linux e2fsprogs xfsprogs btrfs-progs fio qemu-system-x86 strace iproute2 iputils-ping
  socat busybox-static sg3-utils procps python3-minimal zstd tar)
rm -rf "$out"
mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
  --setup-hook="printf '$newer_qemu' >\"\$1\"/etc/apt/preferences.d/qemu" \
  --customize-hook="$here/kernel.sh" \
  trixie "$out" "deb $mirror trixie main" "deb $mirror trixie-backports main"
rm -rf "$out"/var/cache/apt/* "$out"/var/lib/apt/lists/*
