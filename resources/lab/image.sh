#!/bin/bash
# image.sh ROOT GUEST OUT: makes L1's root disk, an ext4 image, without a mount. GUEST becomes /l2 in it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); root=$1; guest=$2; out=$3
rm -rf "$root/l2" "$root/lab"
mkdir -p "$root/l2" "$root/lab" "$root/scratch"
cp "$guest"/* "$root/l2/"
install -m 755 "$here"/host/{init,agent,unattended,start-udevd,idle-vcpus} "$root/lab/"
rm -f "$out"; truncate -s 1536M "$out"
PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1,nodiscard,root_owner=0:0 -m 0 -d "$root" "$out"
