#!/bin/bash
# initramfs.sh ROOT OUT: makes OUT/host.cpio.zst (mounts L1's root), OUT/initramfs (a small guest) and
# OUT/initramfs-tools (the same guest with fio, file systems and SCSI tools: two concatenated archives).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); root=$(readlink -f "$1"); out=$(readlink -f "$2")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
guest_modules=(virtio_blk virtio_scsi sd_mod virtio_net virtio_rng button evdev pvpanic_mmio loop)
tool_modules=(xfs btrfs ext4 dm_mod sg nbd virtio_balloon virtio_mem brd null_blk)
tools=(fio mke2fs mkfs.ext4 e2fsck mkfs.xfs xfs_repair mkfs.btrfs btrfs fstrim blkdiscard lsblk findmnt losetup)

pack() { (cd "$1" && find . -mindepth 1 | sort | cpio --quiet -o -H newc -R 0:0); }

busybox_tree() {
  mkdir -p "$1"/{bin,sbin,dev,proc,sys}
  cp "$root/bin/busybox" "$1/bin/"
}

copy_with_libraries() {
  local program to=$2 library
  program=$(chroot "$root" sh -c "command -v $1")
  mkdir -p "$to/usr/bin" "$to/usr/lib" "$to/lib64"
  cp -L "$root/$program" "$to/usr/bin/"
  for library in $(chroot "$root" ldd "$program" 2>/dev/null | grep -o '/[^ ]*'); do
    case $library in
      /lib64/*) cp -Ln "$root/$library" "$to/lib64/" ;;
      *) cp -Ln "$root/$library" "$to/usr/lib/" ;;
    esac
  done
}

busybox_tree "$work/host"
mkdir -p "$work/host"/{lower,upper,root}
install -m 755 "$here/host/initramfs-init" "$work/host/init"
"$here/modules.sh" "$root" "$work/host" virtio_blk overlay
pack "$work/host" | zstd -q -3 -f -o "$out/host.cpio.zst"

busybox_tree "$work/guest"
for applet in $(chroot "$root" busybox --list); do
  [ "$applet" = busybox ] || ln -s busybox "$work/guest/bin/$applet"
done
ln -s ../bin/busybox "$work/guest/sbin/modprobe"
install -m 755 "$here/guest/init" "$work/guest/init"
install -m 755 "$here/guest/agent" "$here/guest/power-button" "$work/guest/sbin/"
"$here/modules.sh" "$root" "$work/guest" "${guest_modules[@]}"
pack "$work/guest" >"$out/initramfs"

for tool in "${tools[@]}" "$root"/usr/bin/sg_*; do
  copy_with_libraries "${tool##*/}" "$work/tools"
done
"$here/modules.sh" "$root" "$work/tools" "${guest_modules[@]}" "${tool_modules[@]}"
cp "$out/initramfs" "$out/initramfs-tools"
pack "$work/tools" >>"$out/initramfs-tools"
