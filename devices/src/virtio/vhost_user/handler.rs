//! The messages of the vhost-user protocol. An error in one ends the connection.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::GpuBackend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, Result, VhostUserBackendReqHandlerMut};

use super::device::{VhostUserBlock, check_ring_size};
use super::fault::{Fault, host};
use super::inflight_memory::InflightMemory;
use super::memory_table::{MAX_REGIONS, MemoryTable};
use super::ring::RingAddresses;
use crate::event;
use crate::virtio::device::VirtioDevice;

/// Address of a mapped region; only postcopy migration reports it.
type RegionBase = vhost::VhostUserMemoryRegionBase;

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::ReqHandlerError(std::io::Error::other(fault))
    }
}

/// The protocol features that are offered.
const OFFERED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// Answer to a message whose feature is not offered.
const NOT_OFFERED: Error = Error::InvalidOperation("the feature was not offered");

impl VhostUserBackendReqHandlerMut for VhostUserBlock {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.iter_mut().for_each(|ring| {
            ring.stop(false);
            ring.kick = None;
        });
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(self.accept_features(features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<RegionBase>>> {
        let table = MemoryTable::new(regions, files)?;
        self.while_stopped(|device| device.table = table)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<RegionBase>> {
        let table = self.table.with(region, file)?;
        self.while_stopped(|device| device.table = table)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let table = self.table.without(region)?;
        Ok(self.while_stopped(|device| device.table = table)?)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let ring = self.ring(index)?;
        ring.check_stopped()?;
        ring.size = check_ring_size(size)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(NOT_OFFERED);
        }
        let ring = self.ring(index)?;
        let addresses = Some(RingAddresses { descriptors, available, used });
        if ring.addresses != addresses {
            ring.check_stopped()?;
            ring.addresses = addresses;
        }
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let value = base.into();
        let base =
            u16::try_from(base).map_err(|_| Fault::Value { what: "an available index", value })?;
        Ok(self.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let reached = self.end_ring(index)?;
        Ok(VhostUserVringState::new(index, reached.into()))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let ring = self.ring(index.into())?;
        let Some(file) = file else {
            let what = "polling a ring without a kick is not supported";
            return Err(Fault::Order { ring: index.into(), what }.into());
        };
        let kick = event::adopt(file).map_err(host("use an eventfd"))?;
        ring.stop(false);
        ring.kick = Some(Arc::new(kick));
        Ok(self.start_ready()?)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        Ok(self.ring(index.into())?.call.connect(file).map_err(host("use an eventfd"))?)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        Ok(self.ring(index.into())?.error.connect(file).map_err(host("use an eventfd"))?)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        // The next message may end the ring, as QEMU's does.
        let fail_held = self.fails_held();
        let ring = self.ring(index)?;
        ring.enabled = enable;
        if !enable {
            ring.stop(fail_held);
        }
        Ok(self.start_ready()?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(OFFERED)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        match features & !OFFERED.bits() {
            0 => Ok(()),
            unknown => Err(Fault::Features(unknown).into()),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // The crate `vhost` bounds the size of messages.
        let mut data = vec![0; size as usize];
        self.device.read_config(offset.into(), &mut data);
        Ok(data)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        self.write_config(offset, data);
        Ok(())
    }

    fn get_inflight_fd(
        &mut self,
        request: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Ok(self.create_inflight(request.num_queues, request.queue_size)?)
    }

    fn set_inflight_fd(&mut self, kept: &VhostUserInflight, file: File) -> Result<()> {
        Ok(self.set_inflight(InflightMemory::open(kept, file)?)?)
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}
