#!/bin/bash
# debian.sh OUT: installs the userland of a stock Debian guest with systemd in a folder.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); out=$1
rm -rf "$out"
mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt --include=systemd-sysv,udev,kmod,dbus,e2fsprogs,util-linux \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
  trixie "$out" "deb $("$here/mirror.sh") trixie main"
rm -rf "$out"/var/cache/apt/* "$out"/var/lib/apt/lists/*
