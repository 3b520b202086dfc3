#!/bin/bash
# Installs the programs that the tests run on this host.
exec "${0%/*}/../install.sh" qemu-storage-daemon=qemu-utils strace=strace losetup=mount fsfreeze=util-linux mkfs.ext4=e2fsprogs mkfs.btrfs=btrfs-progs mkfs.xfs=xfsprogs sqlite3=sqlite3
