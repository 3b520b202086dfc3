//! A host of files in a temporary folder.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::store_stack::StoreStack;
use crate::store_stack::device_number::DeviceNumber;
use crate::store_stack::host_view::{FileFacts, HostView, ZfsQueries, read_word};
use crate::store_stack::walk::Walk;

/// Attributes of an ordinary disk.
const QUEUE: [(&str, &str); 4] = [
    ("queue/write_cache", "write back"),
    ("queue/fua", "0"),
    ("queue/stable_writes", "0"),
    ("queue/logical_block_size", "512"),
];

/// See the module's documentation.
pub(super) struct FakeHost {
    root: TempDir,
    minors: u32,
}

impl FakeHost {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for folder in ["sys/block", "sys/dev/block", "sys/fs/btrfs", "proc/self", "files"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        Self { root, minors: 0 }
    }

    pub(super) fn view(&self) -> HostView {
        let path = |name: &str| self.root.path().join(name);
        HostView {
            sys: path("sys"),
            proc: path("proc"),
            run: path("run"),
            probe: probe_fake,
            zfs: Some(zfs_fake()),
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes an attribute of a device.
    pub(super) fn set(&self, device: &str, attribute: &str, value: &str) {
        let path = self.path("sys/block").join(device).join(attribute);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    /// Makes a disk with the attributes of [`QUEUE`] and these. Its number is `240:N`.
    pub(super) fn disk(&mut self, name: &str, attributes: &[(&str, &str)]) -> DeviceNumber {
        for (attribute, value) in QUEUE.iter().chain(attributes) {
            self.set(name, attribute, value);
        }
        self.number(name)
    }

    fn number(&mut self, path: &str) -> DeviceNumber {
        let number = DeviceNumber { major: 240, minor: self.minors };
        self.minors += 1;
        let link = self.path("sys/dev/block").join(format!("240:{}", number.minor));
        symlink(Path::new("../../block").join(path), link).unwrap();
        number
    }

    /// Makes a partition of a disk.
    pub(super) fn partition(&mut self, disk: &str, name: &str) -> DeviceNumber {
        let path = format!("{disk}/{name}");
        self.set(disk, &format!("{name}/partition"), "1");
        self.number(&path)
    }

    /// Makes `device` consist of `slaves`, which are paths below `/sys/block`.
    pub(super) fn stack(&self, device: &str, slaves: &[&str]) {
        for slave in slaves {
            let folder = self.path("sys/block").join(device).join("slaves");
            fs::create_dir_all(&folder).unwrap();
            let name = Path::new(slave).file_name().unwrap();
            symlink(Path::new("../..").join(slave), folder.join(name)).unwrap();
        }
    }

    /// Makes a loop device whose backing file has these facts.
    pub(super) fn loop_device(&mut self, name: &str, direct: &str, facts: &str) -> DeviceNumber {
        let file = format!("/{name}.img");
        fs::write(self.path(&format!("files{file}")), facts).unwrap();
        self.disk(name, &[("loop/backing_file", file.as_str()), ("loop/dio", direct)])
    }

    /// Writes a file, with the folders above it.
    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Adds lines to the table of mounts.
    pub(super) fn mounts(&self, lines: &str) {
        let path = self.path("proc/self/mountinfo");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, before + lines + "\n").unwrap();
    }

    /// Makes a btrfs with data profiles on devices.
    pub(super) fn btrfs(&self, uuid: &str, profiles: &[&str], devices: &[&str]) {
        let folder = self.path("sys/fs/btrfs").join(uuid);
        for profile in profiles {
            fs::create_dir_all(folder.join("allocation/data").join(profile)).unwrap();
        }
        fs::create_dir_all(folder.join("devices")).unwrap();
        for device in devices {
            let target = Path::new("../../../../block").join(device);
            symlink(target, folder.join("devices").join(device)).unwrap();
        }
    }

    /// The stack of a device.
    pub(super) fn device_stack(&self, device: DeviceNumber) -> StoreStack {
        self.stack_of(&FileFacts { device: Some(device), ..FileFacts::default() })
    }

    /// The stack of a file with facts as [`parse`] reads them.
    pub(super) fn file_stack(&self, facts: &str) -> StoreStack {
        self.stack_of(&parse(&self.view(), facts))
    }

    pub(super) fn stack_of(&self, facts: &FileFacts) -> StoreStack {
        StoreStack { root: Walk::new(&self.view()).file(facts) }
    }
}

fn probe_fake(host: &HostView, path: &Path) -> io::Result<FileFacts> {
    let files = host.proc.parent().unwrap().join("files");
    let text = read_word(&files.join(path.strip_prefix("/").unwrap_or(path)));
    text.map(|text| parse(host, &text)).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The properties of a dataset are the file of its name in `zfs`, or the file `own` or `quota` in a
/// folder of that name; the members of a pool are the file of its name in `zpool`.
fn zfs_fake() -> ZfsQueries {
    fn read(host: &HostView, folder: &str, name: &str) -> io::Result<String> {
        fs::read_to_string(host.proc.parent().unwrap().join(folder).join(name))
    }
    ZfsQueries {
        properties: |host, dataset, properties| {
            let file = if properties == "quota" { "quota" } else { "own" };
            read(host, "zfs", dataset).or_else(|_| read(host, "zfs", &format!("{dataset}/{file}")))
        },
        members: |host, pool| read(host, "zpool", pool),
    }
}

/// Parses facts like `mount=7 nocow=1 uuid=u`.
fn parse(host: &HostView, text: &str) -> FileFacts {
    let mut facts = FileFacts::default();
    for word in text.split_whitespace() {
        match word.split_once('=').unwrap() {
            ("mount", id) => facts.mount = host.mount(id.parse().unwrap()),
            ("nocow", value) => facts.no_cow = Some(value == "1"),
            ("holes", value) => facts.has_holes = Some(value == "1"),
            ("uuid", value) => facts.fs_uuid = Some(value.to_owned()),
            ("dataset", value) => facts.dataset = Some(value.to_owned()),
            ("device", value) => facts.device = DeviceNumber::parse(value),
            other => panic!("{other:?}"),
        }
    }
    facts
}
