//! `/proc/meminfo`.

use std::fs;
use std::path::Path;

/// `MemAvailable`, in bytes. Files are below `root`.
pub(super) fn available_bytes(root: &Path) -> Option<u64> {
    parse(&read(root)?, "MemAvailable:")
}

/// `SwapFree`, in bytes.
pub(super) fn free_swap_bytes(root: &Path) -> Option<u64> {
    parse(&read(root)?, "SwapFree:")
}

fn read(root: &Path) -> Option<String> {
    fs::read_to_string(root.join("proc/meminfo")).ok()
}

fn parse(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_in_bytes() {
        let text = "MemTotal:       32768 kB\nMemAvailable:    1024 kB\nSwapFree: 4 kB\n";
        assert_eq!(parse(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(parse(text, "SwapFree:"), Some(4096));
        assert_eq!(parse("MemTotal: 1 kB\n", "MemAvailable:"), None);
        assert_eq!(parse("MemAvailable: 99999999999999999 kB\n", "MemAvailable:"), None);
    }
}
