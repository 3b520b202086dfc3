#!/bin/bash
# Installs what the lab's recipe needs on this (Debian) machine; does nothing when all of it is there.
set -euo pipefail
declare -A package=([mmdebstrap]=mmdebstrap [zstd]=zstd [xz]=xz-utils [cpio]=cpio [mke2fs]=e2fsprogs [depmod]=kmod)
missing=()
for program in "${!package[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("${package[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
