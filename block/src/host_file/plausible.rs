//! Limits of a store that a guest should not act on, and what takes their place. Pure.
//!
//! Devices, bridges and drivers report placeholders. A guest that acted on an optimal I/O size of
//! 32 MiB, as each ZFS volume reports it, would read 64 MiB ahead (Linux `block/blk-settings.c`)
//! and align partitions and stripes to it. The rules are those of Linux's `drivers/scsi/sd.c`
//! (`sd_validate_opt_xfer_size`, `sd_validate_min_xfer_size`), with a smaller maximum.

use std::fmt;

use crate::page::PAGE;
use crate::{DiscardLimits, Geometry};

/// Largest physical block and optimal I/O size that a guest is offered, in bytes: the largest
/// physical block of 512-byte sectors in READ CAPACITY (16) (SBC-3 §5.16.2), and the stripe of
/// sixteen drives in chunks of 1 MiB. Placeholders are larger: 65535 sectors of SCSI and USB
/// bridges, 32 MiB of OpenZFS (`DMU_MAX_ACCESS / 2`).
pub(crate) const MAX_OPTIMAL: u64 = 16 << 20;

/// Largest unit of deallocation, in bytes: the largest chunk of a dm-thin pool.
const MAX_GRANULARITY: u64 = 1 << 30;

/// Limits as the store reports them, in bytes; 0 where it reports none.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReportedLimits {
    pub(crate) capacity: u64,
    /// The guest's block: 512 or 4096, or another power of two, which is refused later.
    pub(crate) logical_block: u32,
    pub(crate) physical_block: u64,
    /// The alignment of direct I/O: the physical block is not smaller.
    pub(crate) direct_unit: u32,
    pub(crate) minimum_io: u64,
    pub(crate) optimal_io: u64,
    pub(crate) discard_granularity: u64,
    pub(crate) discard_alignment: u64,
    /// The host deallocates, and the guest is offered it.
    pub(crate) frees: bool,
    /// Whole granules read as zeroes after a discard.
    pub(crate) granules_read_zero: bool,
    /// Any deallocated range reads as zeroes.
    pub(crate) ranges_read_zero: bool,
}

/// A limit that the store reports and the guest is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedLimit {
    /// The limit, as a noun.
    pub limit: &'static str,
    /// Its value, in bytes.
    pub bytes: u64,
    /// The reason that it is not offered.
    pub why: Implausible,
}

/// The reason that a limit is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implausible {
    /// It is larger than this number of bytes.
    AboveBound(u64),
    /// It is smaller than this number of bytes.
    BelowBound(u64),
    /// It is smaller than the minimum I/O size, in bytes.
    BelowMinimum(u64),
    /// It is no multiple of this number of bytes.
    NoMultiple(u64),
    /// It is no power of two.
    NoPowerOfTwo,
    /// It is larger than the disk.
    LargerThanDisk,
    /// It is not smaller than the granularity, in bytes.
    NotBelowGranularity(u64),
}

impl fmt::Display for DroppedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes: ", self.limit, self.bytes)?;
        match self.why {
            Implausible::AboveBound(bound) => write!(f, "larger than {bound} bytes"),
            Implausible::BelowBound(bound) => write!(f, "smaller than {bound} bytes"),
            Implausible::BelowMinimum(minimum) => {
                write!(f, "smaller than the minimum I/O size of {minimum} bytes")
            }
            Implausible::NoMultiple(unit) => write!(f, "not a multiple of {unit} bytes"),
            Implausible::NoPowerOfTwo => write!(f, "not a power of two"),
            Implausible::LargerThanDisk => write!(f, "larger than the disk"),
            Implausible::NotBelowGranularity(granularity) => {
                write!(f, "not smaller than the granularity of {granularity} bytes")
            }
        }
    }
}

/// The geometry of a store that reports these limits, and the limits that it leaves out.
///
/// - The physical block is a power of two of at most [`MAX_OPTIMAL`], else the logical block takes
///   its place.
/// - The optimal I/O size is a multiple of the physical block and of the minimum I/O size, at least
///   a page, at most [`MAX_OPTIMAL`] and no larger than the disk, else it is 0.
/// - The granularity of discards is a multiple of the logical block, at most [`MAX_GRANULARITY`]
///   and no larger than the disk, else the physical block takes its place, and nothing is promised
///   of what a discarded granule reads. It need not be a power of two: a dm-thin pool may have
///   chunks of 192 KiB.
pub(crate) fn geometry(reported: &ReportedLimits) -> (Geometry, Vec<DroppedLimit>) {
    let mut sieve = Sieve(Vec::new());
    let logical = u64::from(reported.logical_block);
    let least = logical.max(reported.direct_unit.into());
    let physical = reported.physical_block;
    let physical = sieve.keep("physical block", physical, physical_fault(physical));
    let physical = physical.unwrap_or(0).max(least);
    let optimal = reported.optimal_io;
    let optimal = sieve.keep("optimal I/O size", optimal, optimal_fault(reported, physical));
    let (discard, is_offered) = (discard_limits(reported, physical, &mut sieve), reported.frees);
    let geometry = Geometry {
        capacity: reported.capacity,
        logical_block: reported.logical_block,
        physical_block: word(physical),
        optimal_io: word(optimal.unwrap_or(0)),
        discard: discard.filter(|_| is_offered),
    };
    (geometry, sieve.0)
}

fn physical_fault(physical: u64) -> Option<Implausible> {
    if !physical.is_power_of_two() {
        return Some(Implausible::NoPowerOfTwo);
    }
    (physical > MAX_OPTIMAL).then_some(Implausible::AboveBound(MAX_OPTIMAL))
}

fn optimal_fault(reported: &ReportedLimits, physical: u64) -> Option<Implausible> {
    let (optimal, minimum) = (reported.optimal_io, reported.minimum_io);
    if optimal > MAX_OPTIMAL {
        return Some(Implausible::AboveBound(MAX_OPTIMAL));
    }
    if optimal > reported.capacity {
        return Some(Implausible::LargerThanDisk);
    }
    if optimal < PAGE as u64 {
        return Some(Implausible::BelowBound(PAGE as u64));
    }
    if optimal < minimum {
        return Some(Implausible::BelowMinimum(minimum));
    }
    // A minimum that is no multiple of the physical block is itself a placeholder.
    let has_minimum = minimum > physical && minimum.is_multiple_of(physical);
    no_multiple(optimal, if has_minimum { minimum } else { physical })
}

fn discard_limits(
    reported: &ReportedLimits,
    physical: u64,
    sieve: &mut Sieve,
) -> Option<DiscardLimits> {
    if reported.discard_granularity == 0 {
        return None;
    }
    let logical = u64::from(reported.logical_block);
    // A device of 512-byte blocks may serve a guest of 4096-byte blocks.
    let granularity = reported.discard_granularity.max(logical);
    let fault = match granularity {
        _ if granularity > reported.capacity => Some(Implausible::LargerThanDisk),
        _ if granularity > MAX_GRANULARITY => Some(Implausible::AboveBound(MAX_GRANULARITY)),
        _ => no_multiple(granularity, logical),
    };
    let kept = sieve.keep("discard granularity", granularity, fault);
    let granularity = kept.unwrap_or(physical);
    let alignment = reported.discard_alignment;
    let fault = match alignment {
        _ if alignment >= granularity => Some(Implausible::NotBelowGranularity(granularity)),
        _ => no_multiple(alignment, logical),
    };
    let aligned = sieve.keep("discard alignment", alignment, fault);
    let knows_granules = kept.is_some() && (alignment == 0 || aligned.is_some());
    Some(DiscardLimits {
        granularity: word(granularity),
        alignment: word(aligned.unwrap_or(0)),
        reads_zero: reported.ranges_read_zero || (reported.granules_read_zero && knows_granules),
    })
}

fn no_multiple(bytes: u64, unit: u64) -> Option<Implausible> {
    (!bytes.is_multiple_of(unit)).then_some(Implausible::NoMultiple(unit))
}

/// All limits are bounded before.
fn word(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Collects what is left out.
struct Sieve(Vec<DroppedLimit>);

impl Sieve {
    /// The limit if it is reported and has no fault.
    fn keep(&mut self, limit: &'static str, bytes: u64, fault: Option<Implausible>) -> Option<u64> {
        match fault {
            _ if bytes == 0 => None,
            None => Some(bytes),
            Some(why) => {
                self.0.push(DroppedLimit { limit, bytes, why });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    const DISK: ReportedLimits = ReportedLimits {
        capacity: 1 << 30,
        logical_block: 512,
        physical_block: 4096,
        direct_unit: 0,
        minimum_io: 4096,
        optimal_io: 0,
        discard_granularity: 4096,
        discard_alignment: 0,
        frees: true,
        granules_read_zero: true,
        ranges_read_zero: false,
    };

    fn optimal(reported: &ReportedLimits) -> (u32, Vec<String>) {
        let (geometry, dropped) = geometry(reported);
        (geometry.optimal_io, dropped.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn placeholders_are_no_optimal_size() {
        let cases = [
            (33_553_920, 512, 512, "larger than 16777216 bytes"),
            (33_554_432, 16384, 16384, "larger than 16777216 bytes"),
            (268_431_360, 4096, 4096, "larger than 16777216 bytes"),
            (512, 512, 512, "smaller than 4096 bytes"),
            (65535, 512, 512, "not a multiple of 512 bytes"),
            (9 * 512, 4096, 4096, "not a multiple of 4096 bytes"),
            (MIB, 4096, 3 * 65536, "not a multiple of 196608 bytes"),
            (MIB, 4096, 2 * MIB, "smaller than the minimum I/O size of 2097152 bytes"),
        ];
        for (optimal_io, physical_block, minimum_io, why) in cases {
            let reported = ReportedLimits { optimal_io, physical_block, minimum_io, ..DISK };
            let expected = format!("optimal I/O size of {optimal_io} bytes: {why}");
            assert_eq!(optimal(&reported), (0, vec![expected]));
        }
        let tiny = ReportedLimits { capacity: MIB, optimal_io: 2 * MIB, ..DISK };
        assert!(optimal(&tiny).1[0].ends_with("larger than the disk"));
    }

    /// Records, stripes of RAID 5 and 6, and the widest that is handed on.
    #[test]
    fn real_optimal_sizes_are_handed_on() {
        let cases = [
            (131_072, 512, 131_072),
            (3 * 65536, 4096, 65536),
            (10 * 524_288, 4096, 524_288),
            (16 * MIB, 4096, MIB),
            // The minimum is a placeholder.
            (MIB, 4096, 33_553_920 / 65535),
            (65536, 512, 0),
        ];
        for (optimal_io, physical_block, minimum_io) in cases {
            let reported = ReportedLimits { optimal_io, physical_block, minimum_io, ..DISK };
            assert_eq!(optimal(&reported), (u32::try_from(optimal_io).unwrap(), vec![]));
        }
    }

    /// The unit of direct I/O is the physical block that the guest sees.
    #[test]
    fn the_optimal_size_is_a_multiple_of_the_block_that_the_guest_sees() {
        let reported =
            ReportedLimits { optimal_io: 4608, physical_block: 512, minimum_io: 512, ..DISK };
        assert_eq!(optimal(&reported).0, 4608);
        for larger in [
            ReportedLimits { direct_unit: 4096, ..reported },
            ReportedLimits { logical_block: 4096, ..reported },
        ] {
            assert_eq!(optimal(&larger).0, 0);
            assert_eq!(geometry(&larger).0.physical_block, 4096);
        }
    }

    #[test]
    fn blocks_and_granules_that_cannot_be_are_replaced() {
        let faulty = |reported: &ReportedLimits| {
            let (geometry, dropped) = geometry(reported);
            assert_eq!(dropped.len(), 1, "{dropped:?}");
            (geometry.physical_block, geometry.discard.unwrap())
        };
        let limits =
            |granularity, reads_zero| DiscardLimits { granularity, alignment: 0, reads_zero };
        for physical_block in [520, 12288, 32 * MIB] {
            let reported = ReportedLimits { physical_block, ..DISK };
            assert_eq!(faulty(&reported), (512, limits(4096, true)));
        }
        for discard_granularity in [1000, 2 << 30, 5 << 30, u64::MAX] {
            let reported = ReportedLimits { discard_granularity, ..DISK };
            assert_eq!(faulty(&reported), (4096, limits(4096, false)));
        }
        let large = ReportedLimits { capacity: 1 << 40, discard_granularity: 2 << 30, ..DISK };
        assert_eq!(faulty(&large), (4096, limits(4096, false)));
        for discard_alignment in [100, 4096, 1 << 40, u64::MAX] {
            let reported = ReportedLimits { discard_alignment, ..DISK };
            assert_eq!(faulty(&reported), (4096, limits(4096, false)));
        }
        let thin = ReportedLimits { discard_granularity: 3 * 65536, ..DISK };
        assert_eq!(
            geometry(&thin),
            (Geometry { discard: Some(limits(3 * 65536, true)), ..geometry(&DISK).0 }, vec![])
        );
        // A file smaller than the transfers of its server.
        let file = ReportedLimits { capacity: 65536, discard_granularity: MIB, ..DISK };
        let file = ReportedLimits { ranges_read_zero: true, ..file };
        assert_eq!(faulty(&file), (4096, limits(4096, true)));
        // The granules of a guest with larger blocks than its store.
        let reported = ReportedLimits { logical_block: 4096, discard_granularity: 512, ..DISK };
        assert_eq!(geometry(&reported).0.discard, Some(limits(4096, true)));
    }

    fn limit() -> impl Strategy<Value = u64> {
        let near = (0_u32..40, -1_i64..=1, 1_u64..20)
            .prop_map(|(log, by, times)| ((1_u64 << log) * times).saturating_add_signed(by));
        prop_oneof![6 => near, 1 => any::<u64>(), 1 => Just(0)]
    }

    prop_compose! {
        fn reports()(
            sectors in 1_u64..1 << 40,
            is_large in any::<bool>(),
            is_coarse in any::<bool>(),
            [physical_block, minimum_io, optimal_io] in [limit(), limit(), limit()],
            [discard_granularity, discard_alignment] in [limit(), limit()],
        ) -> ReportedLimits {
            ReportedLimits {
                capacity: sectors * 4096,
                logical_block: if is_large { 4096 } else { 512 },
                direct_unit: if is_coarse { 4096 } else { 0 },
                physical_block, minimum_io, optimal_io, discard_granularity, discard_alignment,
                frees: true,
                granules_read_zero: true,
                ranges_read_zero: false,
            }
        }
    }

    proptest! {
        /// A guest can act on whatever the store reports.
        #[test]
        fn no_report_makes_an_impossible_geometry(reported in reports()) {
            let (found, dropped) = geometry(&reported);
            let (logical, physical) = (found.logical_block, found.physical_block);
            prop_assert!(physical.is_power_of_two() && physical.is_multiple_of(logical));
            prop_assert!(u64::from(physical) <= MAX_OPTIMAL && physical >= reported.direct_unit);
            let optimal = u64::from(found.optimal_io);
            if optimal > 0 {
                prop_assert_eq!(optimal, reported.optimal_io);
                prop_assert!((4096..=MAX_OPTIMAL.min(found.capacity)).contains(&optimal));
                prop_assert!(found.optimal_io.is_multiple_of(physical));
                prop_assert!(optimal >= reported.minimum_io);
            }
            if let Some(discard) = found.discard {
                prop_assert!(discard.granularity > 0 && discard.granularity.is_multiple_of(logical));
                prop_assert!(discard.alignment < discard.granularity);
                prop_assert!(discard.alignment.is_multiple_of(logical));
                let is_reported = |granule: u32| {
                    u64::from(granule) == reported.discard_granularity.max(logical.into())
                };
                prop_assert!(is_reported(discard.granularity) || discard.granularity == physical);
                let by_granularity = !is_reported(discard.granularity);
                prop_assert!(!(discard.reads_zero && by_granularity));
            }
            // Each limit that is missing is named.
            let is_dropped = |name| dropped.iter().any(|found| found.limit == name);
            prop_assert_eq!(is_dropped("optimal I/O size"), optimal != reported.optimal_io);
        }

        /// A guest may be a host itself: its limits pass a second time.
        #[test]
        fn a_geometry_is_plausible_itself(reported in reports()) {
            let (found, _) = geometry(&reported);
            let discard = found.discard;
            let again = ReportedLimits {
                physical_block: found.physical_block.into(),
                minimum_io: found.physical_block.into(),
                optimal_io: found.optimal_io.into(),
                discard_granularity: discard.map_or(0, |limits| limits.granularity.into()),
                discard_alignment: discard.map_or(0, |limits| limits.alignment.into()),
                granules_read_zero: discard.is_some_and(|limits| limits.reads_zero),
                ..reported
            };
            let (twice, dropped) = geometry(&again);
            prop_assume!(found.physical_block as u64 <= found.capacity);
            prop_assert_eq!(twice, found);
            prop_assert_eq!(dropped, vec![]);
        }

        /// Stripes of `drives` data drives.
        #[test]
        fn a_stripe_is_handed_on(log in 12_u32..21, drives in 1_u64..17, sector in 0_u32..4) {
            let chunk = 1_u64 << log;
            let optimal_io = chunk * drives;
            let physical_block = 512 << sector;
            let reported =
                ReportedLimits { physical_block, minimum_io: chunk, optimal_io, ..DISK };
            let (found, dropped) = geometry(&reported);
            prop_assert_eq!(u64::from(found.optimal_io), optimal_io);
            prop_assert_eq!(dropped, vec![]);
        }
    }
}
