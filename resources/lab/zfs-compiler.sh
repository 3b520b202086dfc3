#!/bin/bash
# zfs-compiler.sh ROOT OUT: what ZFS for ROOT's kernel is made with, as a folder: a compiler, that kernel's headers, the
# sources in zfs-dkms, and the programs of zfsutils-linux. All of it from the release that ROOT is of.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); version=$(cat "$1/boot/version"); out=$2
packages=(make gcc libc6-dev "linux-headers-$version" zfsutils-linux)
rm -rf "$out"
mmdebstrap --quiet --variant=minbase --mode=root --skip=cleanup/apt --include="$(IFS=,; echo "${packages[*]}")" \
  --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='force-unsafe-io' \
  --customize-hook='chroot "$1" sh -c "cd /var/tmp && apt-get download -q zfs-dkms"' \
  --customize-hook='dpkg-deb -x "$1"/var/tmp/zfs-dkms_*.deb "$1"' \
  trixie "$out" "deb $("$here/mirror.sh") trixie main contrib" ||
  { echo "If it is the headers that are not to be had: the mirror has a newer kernel by now; \`lab clean\`, then \`lab build\`." >&2; exit 1; }
