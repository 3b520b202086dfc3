//! Times on the command line and in texts. Pure.

use std::time::Duration;

/// The time limit of a check, if no other is asked for.
pub(super) const DEFAULT_TIMEOUT: &str = "60s";

/// Reads a time with its unit, as 90s, 10m or 2h.
///
/// # Errors
///
/// It is none, or 0, as text for the user.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let seconds = match text.get(digits.len()..) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err("a time has a number and a unit, as in 90s, 10m or 2h".to_owned()),
    };
    let number = digits.parse::<u64>().map_err(|_| "it has no whole number".to_owned())?;
    let total = number.checked_mul(seconds).filter(|total| *total <= 365 * 24 * 3600);
    match total {
        Some(0) => Err("it is 0".to_owned()),
        Some(total) => Ok(Duration::from_secs(total)),
        None => Err("it is longer than a year".to_owned()),
    }
}

/// A time as it is shown, in seconds, minutes or hours.
pub(super) fn human_time(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds @ 60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_number_and_a_unit() {
        let seconds = |text| parse_duration(text).ok().map(|time| time.as_secs());
        assert_eq!(seconds("90s"), Some(90));
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("2h"), Some(7200));
        for wrong in ["", "s", "0s", "10", "1.5h", "-1s", "10 m", "10ms", "9000h", "99999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_shown_in_their_unit() {
        let shown = |millis| human_time(Duration::from_millis(millis));
        assert_eq!(shown(1_234), "1.2 s");
        assert_eq!(shown(61_000), "1 min 1 s");
        assert_eq!(shown(7_260_000), "2 h 1 min");
    }
}
