//! Checks of recorded disks.

use super::*;

const TWO: &str = "[[disk]]\nid='a'\npath='root.img'\nrecord='a.log'\n[[disk]]\nid='b'\n";

#[test]
fn a_disk_that_is_not_written_has_no_log() {
    let text = "[[disk]]\nid='a'\npath='a'\nreadonly=true\nrecord='a.log'\n";
    assert_data_eq!(
        report_with_base(text),
        str![[r#"
`record` with `readonly = true`
  'a.log'  <- there is nothing to record
  true  <- the disk is not written
  remove one of them

"#]]
    );
    assert_eq!(report_with_base(&text.replace("true", "false")), "");
}

#[test]
fn a_limit_is_that_of_a_log() {
    let report = |keys| report_with_base(&format!("[[disk]]\nid='a'\npath='a'\n{keys}"));
    assert_eq!(report("record='a.log'\nrecord_limit='10GiB'\n"), "");
    assert_data_eq!(
        ["record_limit='10GiB'\n", "record='a.log'\nrecord_limit='1KiB'\n"].map(report).concat(),
        str![[r#"
`record_limit` without `record`
  '10GiB'  <- limits nothing
  name the log with `record`, or remove `record_limit`
`record_limit` is out of range
  '1KiB'  <- 1 KiB
  write a size from "1MiB" to "64TiB"

"#]]
    );
}

#[test]
fn a_log_is_a_new_file_of_one_disk() {
    let host = HostFixture::new();
    host.file("base.img", 4096);
    host.file("empty", 0);
    host.content("old.log", b"rhswfsj");
    let second = |keys: &str| host.report_with_base(&format!("{TWO}{keys}"));
    assert_eq!(second("path='base.img'\nrecord='empty'\n"), "");
    assert_eq!(
        second("base='base.img'\nephemeral=true\nephemeral_limit='1MiB'\nrecord='new.log'\n"),
        ""
    );
    let reports = [
        "path='base.img'\nrecord='old.log'\n",
        "path='base.img'\nrecord='base.img'\n",
        "path='new.layer'\nbase='base.img'\ncreate=true\nrecord='base.img'\n",
        "path='new.layer'\nbase='base.img'\ncreate=true\nrecord='new.layer'\n",
        "path='base.img'\nrecord='absent/b.log'\n",
        "path='base.img'\nrecord='/dev/null'\n",
        "path='base.img'\nrecord='a.log'\n",
        "path='a.log'\nbase='base.img'\ncreate=true\n",
    ];
    assert_data_eq!(
        reports.map(second).concat(),
        str![[r#"
the log `/vm/old.log` is not empty
  'old.log'  <- a recording starts a new log
  name a file that does not exist
`record` and `path` name the same file
  'base.img'  <- the log is a file of its own
  'base.img'  <- has the data of the disk
  name a file that does not exist
`record` and `base` name the same file
  'base.img'  <- the log is a file of its own
  'base.img'  <- has the data of the disk
  name a file that does not exist
`record` and `path` name the same file
  'new.layer'  <- the log is a file of its own
  'new.layer'  <- has the data of the disk
  name a file that does not exist
cannot create the log `/vm/absent/b.log`
  'absent/b.log'  <- the directory `/vm/absent` does not exist
  a relative path starts at this file's directory; or create it with `mkdir -p /vm/absent`
cannot create the log `/dev/null`
  '/dev/null'  <- not a regular file
  choose another path
the log `/vm/a.log` is a file of another disk as well
  'a.log'  <- second use
  'a.log'  <- first use
  give each disk a log of its own
the log `/vm/a.log` is a file of another disk as well
  'a.log'  <- second use
  'a.log'  <- first use
  give each disk a log of its own

"#]]
    );
}
