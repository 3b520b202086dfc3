#!/bin/bash
# Installs what the benchmark needs on this (Debian) machine; does nothing when all of it is there.
set -euo pipefail
declare -A package=([fio]=fio [valgrind]=valgrind [strace]=strace [mkfs.xfs]=xfsprogs [losetup]=mount [qemu-storage-daemon]=qemu-utils)
missing=()
for program in "${!package[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
