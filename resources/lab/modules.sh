#!/bin/bash
# modules.sh ROOT DEST MODULE...: copies kernel modules and their dependencies from ROOT into the tree DEST, and indexes
# them for modprobe. Decompresses them, which would take an emulated guest long.
set -euo pipefail
root=$1; dest=$2; shift 2
version=$(cat "$root/boot/version")
files=$(chroot "$root" modprobe -S "$version" --show-depends -a "$@" | awk '$1 == "insmod" { print $2 }' | sort -u)
for file in $files; do
  to=$dest/lib/modules/$version/${file#*/modules/"$version"/}
  mkdir -p "${to%/*}"
  case $file in
    *.xz) xz -dc "$root/$file" >"${to%.xz}" ;;
    *) cp "$root/$file" "$to" ;;
  esac
done
cp "$root/usr/lib/modules/$version/"modules.{order,builtin,builtin.modinfo} "$dest/lib/modules/$version/"
PATH=$PATH:/usr/sbin:/sbin depmod -b "$dest" "$version"
rm "$dest/lib/modules/$version/"modules.*.bin "$dest/lib/modules/$version/modules.builtin.modinfo"
