//! The virtio entropy device (Virtio 1.2 §5.4): the host kernel's random numbers.

use super::chain_worker::{self, ChainHandler, Handled};
use super::{ActivateError, Activation, Chain, DeviceType, QueueError, VirtioDevice, Worker};
use crate::GuestMap;

/// The most random bytes given for one chain; drivers ask again if they want more.
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

    fn activate(&mut self, activation: Activation) -> Result<Vec<Worker>, ActivateError> {
        let Activation { queues, faults, .. } = activation;
        queues
            .into_iter()
            .map(|active| {
                let name = "rng/q0".to_owned();
                chain_worker::spawn(name, active, faults.clone(), Source)
            })
            .collect()
    }
}

/// Fills chains with random bytes.
struct Source;

impl ChainHandler for Source {
    fn handle(&mut self, chain: &Chain, map: &GuestMap) -> Result<Handled, QueueError> {
        let mut random = [0u8; MAX_BYTES];
        let wanted = usize::try_from(chain.writable().len()).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        let (part, _) = random.split_at_mut(wanted);
        let got = rustix::rand::getrandom(&mut *part, rustix::rand::GetRandomFlags::empty());
        let given = part.get(..got.unwrap_or(0)).unwrap_or_default();
        // A driver whose buffers lie outside of its memory gets nothing.
        let written = chain.writable().write(map, given).map_or(0, |()| given.len());
        Ok(Handled::Used(u32::try_from(written).unwrap_or(0)))
    }
}
