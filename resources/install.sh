#!/bin/bash
# install.sh PROGRAM=PACKAGE...: installs the package of each program that this Debian machine lacks.
set -euo pipefail
missing=()
for program; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${program%%=*}" >/dev/null || missing+=("${program#*=}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -qy --no-install-recommends "${missing[@]}"
