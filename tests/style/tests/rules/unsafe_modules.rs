//! The production modules that may contain `unsafe`. A listed module without unsafe code fails the
//! test, so that the list can only shrink.

pub(crate) const UNSAFE_MODULES: &[&str] = &[
    "block/src/host_io/compare.rs",
    "block/src/host_io/host_call.rs",
    "block/src/page.rs",
    "block/src/record/chunk.rs",
    "block/src/segment.rs",
    "block/src/sys.rs",
    "block/src/threads/calls.rs",
    "block/src/uring/mod.rs",
    "block/src/uring/ring.rs",
    "crash/src/host/sys.rs",
    "devices/src/event.rs",
    "devices/src/guest_memory.rs",
    "devices/src/scsi/scratch.rs",
    "devices/src/virtio/net/tap.rs",
    "devices/src/virtqueue/ring_memory.rs",
    "vmm/src/kvm/raw.rs",
    "vmm/src/sys.rs",
];
