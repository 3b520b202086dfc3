#!/bin/bash
# zfs-compiler.sh ROOT OUT: installs the build environment of ZFS for ROOT's kernel in a folder: a compiler, the headers
# of that kernel, the sources in zfs-dkms, and zfsutils-linux. Everything is from ROOT's release.
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
  { echo "If the headers of kernel $version are missing, the mirror has a newer kernel: run \`lab clean\`, then \`lab build\`." >&2; exit 1; }
