//! The real-time clock and CMOS memory of a PC (MC146818), as operating systems read it at boot.
//!
//! The clock shows the host's time in UTC. It cannot be set and has no alarm or periodic interrupt:
//! guests keep time by kvmclock and read this clock once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

/// Offset of the index register. Bit 7 masks NMIs on real machines and is ignored here.
const INDEX: u64 = 0;
/// Offset of the data register.
const DATA: u64 = 1;
const INDEX_MASK: u8 = 0x7f;

const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

/// Status A: time base of 32,768 Hz, the default divider.
const A_DIVIDER: u8 = 0x26;
/// Status A: the time registers change within 244 µs.
const A_UPDATE_IN_PROGRESS: u8 = 0x80;
/// Status B: 24-hour format, binary coded decimals.
const B_24_HOURS: u8 = 0x02;
/// Status D: memory and time are valid.
const D_VALID: u8 = 0x80;
/// Time from the update flag to the change of the second.
const UPDATE_WARNING: Duration = Duration::from_micros(244);

/// A calendar date and time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct DateTime {
    year: u64,
    month: u64,
    day: u64,
    /// 1 for Sunday to 7.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl DateTime {
    /// The date `seconds` after the Unix epoch in the Gregorian calendar.
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / 86_400;
        // Days since March 1 of year 0: a leap day is then the last day of its year.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: seconds / 3_600 % 24,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

/// A number below 100 as two decimal digits.
fn binary_coded_decimal(value: u64) -> u8 {
    u8::try_from(((value / 10 % 10) << 4) | (value % 10)).unwrap_or(u8::MAX)
}

/// The clock and the memory.
pub struct Cmos {
    index: u8,
    memory: [u8; 128],
    now: fn() -> SystemTime,
}

impl Cmos {
    /// Number of ports.
    pub const LENGTH: u16 = 2;

    /// A clock with the host's time.
    pub fn new() -> Self {
        Self { index: 0, memory: [0; 128], now: SystemTime::now }
    }

    fn read_register(&self, index: u8) -> u8 {
        let since_epoch = (self.now)().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = DateTime::from_unix(since_epoch.as_secs());
        match index {
            0x00 => binary_coded_decimal(time.second),
            0x02 => binary_coded_decimal(time.minute),
            0x04 => binary_coded_decimal(time.hour),
            0x06 => binary_coded_decimal(time.weekday),
            0x07 => binary_coded_decimal(time.day),
            0x08 => binary_coded_decimal(time.month),
            0x09 => binary_coded_decimal(time.year % 100),
            CENTURY => binary_coded_decimal(time.year / 100),
            STATUS_A => A_DIVIDER | update_flag(since_epoch),
            STATUS_B => B_24_HOURS,
            STATUS_C => 0,
            STATUS_D => D_VALID,
            _ => self.memory.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }
}

impl Default for Cmos {
    fn default() -> Self {
        Self::new()
    }
}

fn update_flag(since_epoch: Duration) -> u8 {
    let to_next_second = Duration::from_secs(1)
        .saturating_sub(Duration::from_nanos(since_epoch.subsec_nanos().into()));
    if to_next_second <= UPDATE_WARNING { A_UPDATE_IN_PROGRESS } else { 0 }
}

impl BusDevice for Cmos {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (DATA, Some(first)) = (offset, data.first_mut()) {
            *first = self.read_register(self.index);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            INDEX => self.index = value & INDEX_MASK,
            DATA => {
                if let Some(cell) = self.memory.get_mut(usize::from(self.index)) {
                    *cell = value;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cmos: &mut Cmos, index: u8) -> u8 {
        cmos.write(INDEX, &[index]);
        let mut data = [0];
        cmos.read(DATA, &mut data);
        data[0]
    }

    #[test]
    fn dates_follow_the_gregorian_calendar() {
        let date = |seconds| {
            let time = DateTime::from_unix(seconds);
            (time.year, time.month, time.day, time.weekday)
        };
        assert_eq!(date(0), (1970, 1, 1, 5));
        assert_eq!(date(951_782_400), (2000, 2, 29, 3));
        assert_eq!(date(951_868_800), (2000, 3, 1, 4));
        assert_eq!(date(4_107_542_400), (2100, 3, 1, 2));
        assert_eq!(date(1_735_689_599), (2024, 12, 31, 3));
    }

    #[test]
    fn registers_show_the_time_in_binary_coded_decimals() {
        let mut cmos = Cmos::new();
        // 2024-12-31 23:59:58 UTC
        cmos.now = || UNIX_EPOCH + Duration::from_secs(1_735_689_598);
        let shown = [CENTURY, 9, 8, 7, 4, 2, 0].map(|index| read(&mut cmos, index));
        assert_eq!(shown, [0x20, 0x24, 0x12, 0x31, 0x23, 0x59, 0x58]);
    }

    #[test]
    fn the_update_flag_precedes_the_change_of_the_second() {
        let mut cmos = Cmos::new();
        cmos.now = || UNIX_EPOCH + Duration::from_nanos(5_999_900_000);
        assert_eq!(read(&mut cmos, STATUS_A) & A_UPDATE_IN_PROGRESS, A_UPDATE_IN_PROGRESS);
        cmos.now = || UNIX_EPOCH + Duration::from_nanos(5_999_000_000);
        assert_eq!(read(&mut cmos, STATUS_A) & A_UPDATE_IN_PROGRESS, 0);
    }

    #[test]
    fn memory_is_writable_and_the_clock_is_not() {
        let mut cmos = Cmos::new();
        cmos.write(INDEX, &[0x80 | 0x40]);
        cmos.write(DATA, &[0x5a]);
        assert_eq!(read(&mut cmos, 0x40), 0x5a);
        cmos.write(INDEX, &[STATUS_D]);
        cmos.write(DATA, &[0]);
        assert_eq!(read(&mut cmos, STATUS_D), D_VALID);
    }
}
