#!/bin/bash
# root.sh OUT: installs the userland of the lab's host (L1), and the kernel of L1 and its guests, in a folder.
# This machine runs the QEMU of that folder, so that the lab has one version of QEMU on every machine.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); out=$1
packages=(udev kmod util-linux e2fsprogs xfsprogs btrfs-progs mdadm fio qemu-system-x86 strace iproute2 iputils-ping
  socat busybox-static sg3-utils procps python3-minimal zstd tar lvm2 thin-provisioning-tools)
rm -rf "$out"
mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
  --customize-hook="$here/kernel.sh" \
  trixie "$out" "deb $("$here/mirror.sh") trixie main"
rm -rf "$out"/var/cache/apt/* "$out"/var/lib/apt/lists/*
