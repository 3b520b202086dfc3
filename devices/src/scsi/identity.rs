//! The identification of a logical unit.

/// T10 vendor identification of all units.
pub(super) const VENDOR: &str = "BULKHEAD";

/// Identifiers of a unit, unique among all units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The unit serial number, ASCII.
    pub serial: String,
    /// A locally assigned NAA identifier (SPC-4 §7.8.6.6.4).
    pub naa: u64,
}

impl Identity {
    /// The identity of the disk with a serial number whose data is at `location`: the same in every
    /// run, and different for any other pair.
    #[must_use]
    pub fn new(serial: &str, location: &str) -> Self {
        const LOCALLY_ASSIGNED: u64 = 3 << 60;
        // FNV-1a: hashes of the standard library may change with its version.
        let bytes = serial.bytes().chain([0]).chain(location.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self { serial: serial.to_owned(), naa: LOCALLY_ASSIGNED | hash >> 4 }
    }
}
