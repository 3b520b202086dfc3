//! A disk in memory that notes what is read.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use crash::CheckedDisk;

pub(crate) struct TestDisk {
    bytes: Mutex<Vec<u8>>,
    reads: Mutex<Vec<Range<u64>>>,
    marks: String,
    /// Blocks from this byte on are the same in all states, until they are written.
    same_from: u64,
}

impl TestDisk {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let marks = "before\nafter\n".to_owned();
        Self { bytes: Mutex::new(bytes), reads: Mutex::default(), marks, same_from: u64::MAX }
    }

    /// A disk of `len` bytes, each of which is the number of its block of 4 KiB.
    pub(crate) fn numbered(len: usize) -> Self {
        Self::new((0..len).map(|at| u8::try_from(at / 4096 % 251).unwrap()).collect())
    }

    /// The same, whose blocks from byte `at` on are the same in all states.
    pub(crate) fn same_from(self, at: u64) -> Self {
        Self { same_from: at, ..self }
    }

    pub(crate) fn reads(&self) -> Vec<Range<u64>> {
        self.reads.lock().unwrap().clone()
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn range(&self, at: u64, len: u64) -> io::Result<Range<usize>> {
        let end = at.checked_add(len).filter(|end| *end <= self.size());
        let end = end.ok_or(io::Error::from_raw_os_error(22))?;
        Ok(usize::try_from(at).unwrap()..usize::try_from(end).unwrap())
    }
}

impl CheckedDisk for TestDisk {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = self.range(at, buffer.len() as u64)?;
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[range]);
        self.reads.lock().unwrap().push(at..at + buffer.len() as u64);
        Ok(())
    }

    fn read_same(&self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.lock().unwrap();
        if at < self.same_from || at >= bytes.len() as u64 {
            return Ok(0);
        }
        let rest = &bytes[usize::try_from(at).unwrap()..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        let range = self.range(at, data.len() as u64)?;
        self.bytes.lock().unwrap()[range].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let range = self.range(at, len)?;
        self.bytes.lock().unwrap()[range].fill(0);
        Ok(())
    }

    fn marks(&self) -> String {
        self.marks.clone()
    }
}

/// An ext4 file system of `mebibytes`, with some files.
pub(crate) fn ext4(mebibytes: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("content");
    fs::create_dir(&content).unwrap();
    for number in 0..40 {
        fs::write(content.join(format!("file{number}")), vec![number; 10_000]).unwrap();
    }
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(&content).arg(&image));
    fs::read(Path::new(&image)).unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
