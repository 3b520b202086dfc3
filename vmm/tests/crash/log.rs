//! `bulkhead crash log`.

use std::fs;

use serde_json::Value;
use snapbox::str;

use crate::log_file::LogFile;
use crate::{crash, folder};

#[test]
fn a_log_is_summarised() {
    let folder = folder(true);
    crash(&folder, &["log", "disk.log"]).code(0).stderr_eq("").stdout_eq(str![[r#"
disk.log: 8 entries

  writes     3, 1.5 KiB, 0 durable when they completed
  flushes    2
  marks      2
  duration   0.005500 s
  end        closed: the machine was stopped

"#]]);
    let run = crash(&folder, &["log", "disk.log", "--json"]).code(0).stderr_eq("");
    let summary: Value = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(summary["kinds"]["writes"], serde_json::json!({ "count": 3, "bytes": 1536 }));
    assert_eq!(summary["closed"], "the machine was stopped");
}

#[test]
fn entries_are_listed() {
    let folder = folder(true);
    let run = crash(&folder, &["log", "disk.log", "--entries"]).code(0).stderr_eq("");
    run.stdout_eq(str![[r#"
    ENTRY    REQUEST  KIND             OFFSET       BYTES         ISSUED      COMPLETED  QUEUE  NOTE
        0          -  mark                  0           0     0.000000 s     0.000500 s      0  start
        1          0  write              4096         512     0.000000 s     0.000500 s      0
        2          1  flush                 0           0     0.001000 s     0.001500 s      0
        3          2  write                 0         512     0.002000 s     0.002500 s      0
        4          -  mark                  0           0     0.003000 s     0.003500 s      0  committed�[31m
        5          3  flush                 0           0     0.003000 s     0.003500 s      0
        6          4  write             12288         512     0.004000 s     0.004500 s      0
        7          -  end                   0           0     0.005000 s     0.005500 s      0  the machine was stopped

"#]]);
    let run = crash(&folder, &["log", "disk.log", "--entries", "--json"]).code(0);
    let entries: Vec<Value> = serde_json::from_slice(&run.get_output().stdout).unwrap();
    assert_eq!(entries.len(), 8);
    assert_eq!(entries[1]["offset_bytes"], 4096);
}

#[test]
fn a_log_without_an_end_is_read_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.log");
    let mut log = LogFile::new();
    log.write(0, &[1; 8192]);
    log.discard(4096, 4096);
    log.save(&path);
    let mut bytes = fs::read(&path).unwrap();
    // As one that was killed before it counted its entries.
    bytes[16..24].fill(0);
    fs::write(&path, &bytes).unwrap();
    crash(&folder, &["log", "disk.log"]).code(0).stderr_eq("").stdout_eq(str![[r#"
disk.log: 2 entries

  writes     1, 8 KiB, 0 durable when they completed
  discards   1, 4 KiB
  duration   0.001500 s
  end        not closed: what was in flight is missing

"#]]);
    // As the count says that there are more.
    bytes[16] = 9;
    fs::write(&path, &bytes).unwrap();
    crash(&folder, &["log", "disk.log"]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log: it ends at entry 2, and should have 9

"#]]);
    bytes[16] = 2;
    bytes[512 + 3] ^= 1;
    fs::write(&path, &bytes).unwrap();
    crash(&folder, &["log", "disk.log"]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log: entry 0: the checksum of an entry is wrong

"#]]);
    fs::write(&path, "none").unwrap();
    crash(&folder, &["log", "disk.log"]).code(1).stdout_eq("").stderr_eq(str![[r#"
error: disk.log: it is not a log of writes: it has not the signature of dm-log-writes

"#]]);
}
