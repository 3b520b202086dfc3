#!/bin/bash
# Installs the programs that the benchmark runs.
exec "${0%/*}/../install.sh" fio=fio valgrind=valgrind strace=strace mkfs.xfs=xfsprogs losetup=mount qemu-storage-daemon=qemu-utils
