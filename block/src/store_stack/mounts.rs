//! Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use super::device_number::DeviceNumber;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    /// The device of its file system; major 0 for file systems without one.
    pub(super) device: DeviceNumber,
    pub(super) point: String,
    pub(super) fs_type: String,
    pub(super) source: String,
    /// Options of the mount, then those of the superblock.
    pub(super) options: Vec<String>,
}

/// The mount with this ID.
pub(super) fn find(mountinfo: &str, id: u64) -> Option<Mount> {
    mountinfo.lines().filter_map(parse).find(|mount| mount.id == id)
}

/// Parses one line; `None` if it has another form.
fn parse(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let id = mount.next()?.parse().ok()?;
    let device = DeviceNumber::parse(mount.nth(1)?)?;
    let point = unescape(mount.nth(1)?);
    let options = mount.next()?;
    let mut file_system = file_system.split(' ');
    let (fs_type, source) = (file_system.next()?, file_system.next()?);
    let super_options = file_system.next().unwrap_or_default();
    let options = options.split(',').chain(super_options.split(','));
    Some(Mount {
        id,
        device,
        point,
        fs_type: fs_type.to_owned(),
        source: unescape(source),
        options: options.map(unescape).filter(|option| !option.is_empty()).collect(),
    })
}

/// Replaces octal escapes of space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed() {
        let text = "22 1 254:0 / / rw,relatime - ext4 /dev/root rw,nobarrier\n\
            36 22 0:32 /a /mnt/a\\040b rw,noatime shared:1 master:2 - btrfs /dev/x rw,ssd,subvol=/a\n";
        let mount = find(text, 36).unwrap();
        assert_eq!(mount.point, "/mnt/a b");
        assert_eq!(mount.device, DeviceNumber { major: 0, minor: 32 });
        assert_eq!((mount.fs_type.as_str(), mount.source.as_str()), ("btrfs", "/dev/x"));
        assert_eq!(mount.options, ["rw", "noatime", "rw", "ssd", "subvol=/a"]);
        assert_eq!(find(text, 22).unwrap().options, ["rw", "relatime", "rw", "nobarrier"]);
        assert_eq!(find(text, 37), None);
    }

    #[test]
    fn garbage_is_no_mount() {
        for line in ["", " - ", "36", "36 22 x:y / / rw - a b c", "36 22 0:1 / - a", "\\0 \\04"] {
            assert_eq!(find(line, 36), None, "{line}");
        }
        assert_eq!(unescape("\\"), "\\");
        assert_eq!(unescape("\\04"), "\\04");
        assert_eq!(unescape("\\999é\\134"), "\\999é\\");
    }
}
