//! The storage stack: what a disk is. Knows no virtio, no KVM, no guest addresses.
