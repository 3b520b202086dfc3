#!/bin/sh
# Runs in the demo's guest. The first boot writes a file and reboots, the second one verifies it.
set -e
mount /dev/vda /mnt
cd /mnt
if [ ! -f letter ]; then
  dd if=/dev/urandom of=letter bs=1M count=16 status=none
  sha256sum letter >letter.sha256
  sync
  echo "wrote a file of 16 MiB to /dev/vda and synced it: $(cut -c1-16 letter.sha256)..."
  echo "rebooting, without unmounting"
  exec reboot -f
fi
sha256sum -c letter.sha256 >/dev/null
echo "found the file again, its checksum holds:  $(cut -c1-16 letter.sha256)..."
