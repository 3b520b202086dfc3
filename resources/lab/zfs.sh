#!/bin/bash
# zfs.sh ROOT COMPILER OUT: makes OUT/zfs.tar, which adds ZFS to ROOT: the modules spl and zfs for its kernel, the
# programs zfs and zpool with their libraries, udev's rules for /dev/zvol. OUT/version has the version of ZFS.
set -euo pipefail
root=$(readlink -f "$1"); compiler=$(readlink -f "$2"); out=$(readlink -f "$3"); files=$out/files
version=$(cat "$root/boot/version")
source=$(cd "$compiler" && echo usr/src/zfs-[0-9]*)
in_source() { chroot "$compiler" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -euc "cd /$source; $1"; }
in_source "./configure --with-config=kernel --with-linux=/lib/modules/$version/source --with-linux-obj=/lib/modules/$version/build"
in_source "make -s -j$(nproc)"

modules=$files/usr/lib/modules/$version/extra
mkdir -p "$modules" "$files"/usr/{sbin,lib/udev/rules.d,lib/x86_64-linux-gnu}
for module in spl zfs; do
  chroot "$compiler" strip --strip-debug -o /module.ko "/$source/module/$module.ko"
  mv "$compiler/module.ko" "$modules/$module.ko"
done
programs=(usr/sbin/zfs usr/sbin/zpool usr/lib/udev/zvol_id)
for file in "${programs[@]}" usr/lib/udev/rules.d/60-zvol.rules; do cp "$compiler/$file" "$files/$file"; done
for library in $(chroot "$compiler" ldd "${programs[@]/#//}" | grep -o '/lib[^ ]*\.so[^ ]*' | sort -u); do
  [ -e "$root/$library" ] || cp -L "$compiler/$library" "$files/usr/lib/x86_64-linux-gnu/"
done
tar -C "$files" --owner=0 --group=0 -cf "$out/zfs.tar" usr
rm -r "$files"
echo "${source#usr/src/zfs-}" >"$out/version"
