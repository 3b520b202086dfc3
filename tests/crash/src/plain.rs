//! Plain sampling of crash states, to compare a search with.

use std::collections::HashMap;

use crash::{CheckedDisk, Loss, Losses, Recording, StateName};

/// Samples of a recording: a power cut after a uniformly random number of completions, at which
/// each write that is not durable is there, lost or, one in ten, torn at a random sector.
pub struct PlainSamples<'r> {
    recording: &'r Recording,
    random: u64,
    /// The writes that are not durable at a power cut, with their sectors.
    open: HashMap<u64, Vec<(u64, u64)>>,
}

impl<'r> PlainSamples<'r> {
    /// The samples that a seed determines.
    #[must_use]
    pub fn new(recording: &'r Recording, seed: u64) -> Self {
        Self { recording, random: seed, open: HashMap::new() }
    }

    /// Checks samples until one fails, at most `most`. Returns how many were checked.
    pub fn until_failure(&mut self, most: u64, check: impl Fn(&dyn CheckedDisk) -> bool) -> u64 {
        for number in 1..=most {
            let state = self.next();
            let disk = self.recording.state(&state).expect("only open writes are lost");
            if !check(&*disk) {
                return number;
            }
        }
        most
    }

    fn next(&mut self) -> StateName {
        let point = self.below(self.recording.requests() + 1);
        let recording = self.recording;
        let open = self.open.entry(point).or_insert_with(|| open(recording, point)).clone();
        let mut losses = Losses::none();
        for (write, sectors) in open {
            match self.below(20) {
                0 | 1 if sectors > 1 => {
                    let cut = 1 + self.below(sectors - 1);
                    let lost = if self.below(2) == 0 { (0, cut) } else { (cut, sectors - cut) };
                    losses = losses.with(write, &Loss::Sectors(vec![lost]));
                }
                number if number % 2 == 0 => losses = losses.with(write, &Loss::Whole),
                _ => {}
            }
        }
        StateName { point, losses, discards: false }
    }

    /// SplitMix64, below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// All writes that a power cut finds not durable, discards among them.
fn open(recording: &Recording, point: u64) -> Vec<(u64, u64)> {
    let lost = |discards| recording.explain(&StateName { point, losses: Losses::All, discards });
    let explained = lost(true).or_else(|_| lost(false)).expect("the power cut is one of it");
    explained.lost.iter().map(|lost| (lost.write.number, lost.write.len / 512)).collect()
}
