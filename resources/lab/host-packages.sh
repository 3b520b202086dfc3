#!/bin/bash
# What the lab's recipe needs on this machine.
exec "${0%/*}/../install.sh" mmdebstrap=mmdebstrap zstd=zstd xz=xz-utils cpio=cpio mke2fs=e2fsprogs depmod=kmod
