//! The virtio entropy device (Virtio 1.2 §5.4): random numbers of the host kernel.

use super::chain_worker::{self, ChainHandler, Handled};
use super::device::{Activation, DeviceType, VirtioDevice};
use crate::GuestMap;
use crate::virtqueue::{Chain, QueueError};
use crate::worker::{StartError, Worker};

/// Maximum number of bytes per chain; a driver asks again if it wants more.
const MAX_BYTES: usize = 4096;

/// An entropy device.
#[derive(Debug, Default)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, StartError> {
        let faults = activation.faults.clone();
        activation.start_workers(|active| {
            chain_worker::spawn("rng/q0".to_owned(), active, faults.clone(), RandomSource)
        })
    }
}

/// Fills chains with random bytes.
struct RandomSource;

impl ChainHandler for RandomSource {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        let mut random = [0u8; MAX_BYTES];
        let wanted = usize::try_from(chain.writable().len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let (part, _) = random.split_at_mut(wanted);
        let got = rustix::rand::getrandom(&mut *part, rustix::rand::GetRandomFlags::empty());
        let given = part.get(..got.unwrap_or(0)).unwrap_or_default();
        // Buffers outside of guest memory receive nothing.
        let written = chain.writable().write(map, given).map_or(0, |()| given.len());
        Ok(Handled::Used(u32::try_from(written).unwrap_or(0)))
    }
}
