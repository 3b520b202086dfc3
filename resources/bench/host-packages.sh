#!/bin/bash
# What the benchmark needs on this machine.
exec "${0%/*}/../install.sh" fio=fio valgrind=valgrind strace=strace mkfs.xfs=xfsprogs losetup=mount qemu-storage-daemon=qemu-utils
