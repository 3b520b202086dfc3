//! Watches how full the store of a disk becomes, and tells its guest and everybody else when its soft limit is passed.
//!
//! On a thread of its own for each disk: a file system that hangs must hold up nothing.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use block::Crossing;
use devices::virtio::DiskControl;

use super::events::{Events, Happening};
use crate::config::human_size;

/// How often the stores are looked at.
const PERIOD: Duration = Duration::from_secs(2);
/// The thread does little.
const STACK_BYTES: usize = 128 << 10;

/// The running watch; it ends when this is dropped.
pub(crate) struct SpaceWatch {
    _stop: Sender<()>,
    _thread: JoinHandle<()>,
}

impl SpaceWatch {
    /// Watches a disk. Nothing runs if it has no soft limit.
    ///
    /// # Errors
    ///
    /// When the host gives no thread.
    pub(crate) fn start(disk: &DiskControl, events: Arc<Events>) -> io::Result<Option<Self>> {
        if disk.backend().status().soft_limit.is_none() {
            return Ok(None);
        }
        let watched = Watched::new(disk.clone());
        let (stop, stopped) = channel();
        let builder = thread::Builder::new().name("space".into()).stack_size(STACK_BYTES);
        // Not joined: it may sit in a file system that hangs. It holds nothing that must not outlive the machine.
        let thread = builder.spawn(move || watch(watched, &stopped, &events))?;
        Ok(Some(Self { _stop: stop, _thread: thread }))
    }
}

fn watch(mut disk: Watched, stopped: &Receiver<()>, events: &Events) {
    loop {
        disk.look(events);
        if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// One disk.
struct Watched {
    disk: DiskControl,
    /// The host refused to answer, which is said once.
    failing: bool,
}

impl Watched {
    fn new(disk: DiskControl) -> Self {
        Self { disk, failing: false }
    }

    fn look(&mut self, events: &Events) {
        let crossing = match self.disk.check_soft_limit() {
            Ok(crossing) => crossing,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    let disk = self.disk.name();
                    tracing::warn!(disk, %error, "the host does not say how much space is left");
                }
                return;
            }
        };
        self.failing = false;
        if let Some(crossing) = crossing {
            self.tell(crossing, events);
        }
    }

    fn tell(&self, crossing: Crossing, events: &Events) {
        let disk = self.disk.name();
        let backend = self.disk.backend();
        let percent = backend.status().soft_limit.map_or(0, |limit| limit.percent);
        let left = match backend.backing_space() {
            Ok(Some(space)) => human_size(space.available),
            _ => "an unknown amount".to_owned(),
        };
        let (what, text) = match crossing {
            Crossing::Reached => {
                let text =
                    format!("{percent} % of the space it is stored on is used; {left} is left");
                tracing::warn!(disk, "soft limit reached: {text}");
                (Happening::SoftLimitReached, text)
            }
            Crossing::Receded => {
                let text = format!(
                    "less than {percent} % of the space it is stored on is used again; {left} is left"
                );
                tracing::info!(disk, "soft limit receded: {text}");
                (Happening::SoftLimitReceded, text)
            }
        };
        events.add(what, disk, text);
    }
}
