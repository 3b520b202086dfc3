#!/bin/bash
# Installs the programs that the tests run on this host.
if [ ! -e /usr/bin/pg_createcluster ]; then
  # The package would make a cluster and start its server.
  mkdir -p /etc/postgresql-common/createcluster.d
  echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.d/bulkhead.conf
fi
exec "${0%/*}/../install.sh" qemu-storage-daemon=qemu-utils qemu-img=qemu-utils strace=strace losetup=mount fsfreeze=util-linux mkfs.ext4=e2fsprogs mkfs.btrfs=btrfs-progs mkfs.xfs=xfsprogs sqlite3=sqlite3 pg_createcluster=postgresql mdb_dump=lmdb-utils eatmydata=eatmydata
