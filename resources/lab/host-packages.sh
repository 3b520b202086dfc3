#!/bin/bash
# Installs the programs that the lab's recipe runs.
exec "${0%/*}/../install.sh" mmdebstrap=mmdebstrap zstd=zstd xz=xz-utils cpio=cpio mke2fs=e2fsprogs depmod=kmod
