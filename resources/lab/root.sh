#!/bin/bash
# root.sh OUT: the userland of the lab's host (L1) and the kernel that both L1 and its guests boot, as a folder.
# The same folder later lends its QEMU to this machine, so that every machine runs the lab on one known version.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); out=$1
packages=(udev kmod util-linux e2fsprogs xfsprogs btrfs-progs fio qemu-system-x86 strace iproute2 iputils-ping
  socat busybox-static sg3-utils procps python3-minimal zstd tar)
rm -rf "$out"
mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
  --customize-hook="$here/kernel.sh" \
  trixie "$out" "deb $("$here/mirror.sh") trixie main"
rm -rf "$out"/var/cache/apt/* "$out"/var/lib/apt/lists/*
