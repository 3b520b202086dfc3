//! Virtio 1.2: the split virtqueue, the PCI transport, and the devices on it.
