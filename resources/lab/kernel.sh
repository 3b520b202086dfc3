#!/bin/bash
# kernel.sh ROOT: unpacks the release's current cloud kernel into ROOT without installing it (no initramfs tools, no
# hooks) and writes its version to ROOT/boot/version. mmdebstrap runs this while ROOT still has its package lists.
set -euo pipefail
root=$1
package=$(chroot "$root" apt-cache depends --important linux-image-cloud-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
[ -n "$package" ] || { echo "linux-image-cloud-amd64 depends on no kernel image" >&2; exit 1; }
version=${package#linux-image-}; version=${version%-unsigned}
chroot "$root" sh -c "cd /var/tmp && apt-get download -q $package"
dpkg-deb -x "$root"/var/tmp/linux-image-*.deb "$root"
rm "$root"/var/tmp/linux-image-*.deb
chroot "$root" depmod "$version"
echo "$version" > "$root/boot/version"
