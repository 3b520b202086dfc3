#!/bin/bash
# vmlinux.sh BZIMAGE OUT: extracts the ELF kernel from a bzImage. The setup header has its location
# (Linux x86 boot protocol: setup_sects at 0x1f1, payload_offset at 0x248, payload_length at 0x24c).
set -euo pipefail
number() { od -An -j "$2" -N "$3" -t "u$3" "$1" | tr -d ' '; }
sectors=$(number "$1" $((0x1f1)) 1)
start=$(((sectors + 1) * 512 + $(number "$1" $((0x248)) 4)))
length=$(number "$1" $((0x24c)) 4)
# The last four bytes of the payload are the unpacked size, which is not part of the compressed stream.
payload() { dd if="$1" bs=1M skip="$start" count=$((length - 4)) iflag=skip_bytes,count_bytes status=none; }
case $(od -An -j "$start" -N 4 -t x1 "$1" | tr -d ' ') in
  28b52ffd) payload "$1" | zstd -dcq >"$2" ;;
  fd377a58) payload "$1" | xz -dc >"$2" ;;
  *) echo "unknown compression of the kernel in $1: add it to vmlinux.sh" >&2; exit 1 ;;
esac
