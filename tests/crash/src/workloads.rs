//! The workloads of a recorded disk of this machine. Their marks say what is durable.

use std::fs;

use anyhow::{Context as _, Result};
use crash::host::BUILTIN_CHECKS;
use tempfile::NamedTempFile;

use super::recorded::{Recorded, Workload};

const EXT4: &str = "mkfs.ext4 -q -F \"$0\"";
const EXT4_BYTES: u64 = 64 << 20;

/// A file system, and the options that it is mounted with.
pub(super) struct FileSystem {
    size: u64,
    format: &'static str,
    options: &'static str,
}

impl FileSystem {
    pub(super) const EXT4: Self = Self { size: EXT4_BYTES, format: EXT4, options: "" };
    pub(super) const XFS: Self =
        Self { size: 320 << 20, format: "mkfs.xfs -q \"$0\"", options: "" };
    pub(super) const BTRFS: Self =
        Self { size: 128 << 20, format: "mkfs.btrfs -q \"$0\"", options: "" };

    /// Mounted with more options.
    pub(super) const fn with(self, options: &'static str) -> Self {
        Self { options, ..self }
    }
}

/// Files are written and synced, which marks say, then moved and removed.
pub(super) fn files(on: &FileSystem) -> Result<Recorded> {
    Recorded::run(on.size, on.format, |disk| {
        disk.sh(&format!("mount {} $DEV $MNT", on.options))?;
        for number in 0..6 {
            let file = format!("$MNT/f{number}");
            let bytes = number * 3000 + 100;
            disk.sh(&format!("head -c {bytes} /dev/urandom >{file}; sync {file}"))?;
            let sum = disk.sh(&format!("sha256sum <{file}"))?;
            let sum = sum.split(' ').next().unwrap_or_default();
            disk.mark(&format!("synced {sum} f{number}"))?;
        }
        disk.sh("mkdir $MNT/d; echo x >$MNT/d/g; mv $MNT/d/g $MNT/h; sync; umount $MNT")?;
        Ok(())
    })
}

/// Does `insert` with the numbers from 1, and notes each when it has succeeded.
fn commit(disk: &Workload, rows: u64, insert: impl Fn(u64) -> String) -> Result<()> {
    for number in 1..=rows {
        disk.sh(&insert(number))?;
        disk.mark(&format!("committed {number}"))?;
    }
    Ok(())
}

/// Rows are inserted by SQLite's shell.
pub(super) fn sqlite(pragmas: &str) -> Result<Recorded> {
    Recorded::run(EXT4_BYTES, EXT4, |disk| {
        let sql = |sql: &str| format!("sqlite3 $MNT/db '{pragmas} {sql}' >/dev/null");
        disk.sh("mount $DEV $MNT")?;
        disk.sh(&sql("create table t (n integer primary key, text text);"))?;
        disk.sh("sync")?;
        commit(disk, 6, |row| {
            sql(&format!("insert into t values ({row}, hex(randomblob(900)));"))
        })?;
        disk.sh("umount $MNT").map(drop)
    })
}

/// Entries are put by the command `load`, a transaction each.
pub(super) fn lmdb(load: &str) -> Result<Recorded> {
    Recorded::run(EXT4_BYTES, EXT4, |disk| {
        disk.sh("mount $DEV $MNT")?;
        commit(disk, 6, |entry| {
            format!("printf 'key {entry}\\n%0900d\\n' {entry} | {load} -n -T $MNT/db")
        })?;
        disk.sh("umount $MNT").map(drop)
    })
}

/// Where a Debian has the server's programs.
const POSTGRES: &str = "PATH=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1):$PATH\n";

/// Rows are inserted by a server of PostgreSQL with these settings.
pub(super) fn postgres(settings: &str) -> Result<Recorded> {
    let format = format!(
        "{POSTGRES}new=$(mktemp -d); chown postgres $new
         runuser -u postgres -- initdb -D $new/data -U postgres -A trust --no-sync --no-locale \
            --wal-segsize=1 >$new/said
         mkfs.ext4 -q -F -d $new \"$0\"; rm -rf $new"
    );
    let server = "runuser -u postgres -- pg_ctl -s -w -D $MNT/data";
    Recorded::run(EXT4_BYTES + EXT4_BYTES / 2, &format, |disk| {
        let sql = |sql: &str| format!("{POSTGRES}psql -q -h $MNT/data -U postgres -c \"{sql}\"");
        disk.sh(&format!(
            "{POSTGRES}mount $DEV $MNT\n{server} start -l $MNT/data/log -o \"{settings} \
             -c listen_addresses= -c unix_socket_directories=$MNT/data\""
        ))?;
        let rows = || -> Result<()> {
            disk.sh(&sql("create table t (n integer primary key, text text)"))?;
            disk.sh("sync")?;
            commit(disk, 6, |row| sql(&format!("insert into t values ({row}, repeat('x', 900))")))
        };
        let result = rows();
        disk.sh(&format!("{POSTGRES}{server} stop -m fast; umount $MNT"))?;
        result
    })
}

/// Records that the disk has place for.
const PATTERN_SLOTS: u64 = 16;

/// Records on the disk itself, which is flushed after each third one by the command `flush`.
pub(super) fn pattern(flush: &str) -> Result<Recorded> {
    let check = BUILTIN_CHECKS.iter().find(|check| check.name == "check-pattern");
    let script = NamedTempFile::new()?;
    fs::write(&script, check.context("no such check")?.script)?;
    let script = script.path().display();
    Recorded::run(PATTERN_SLOTS * 4096, "true", |disk| {
        for record in 1..=30 {
            let slot = record % PATTERN_SLOTS;
            disk.sh(&format!(
                "sh {script} print {record} | \
                 dd of=$DEV bs=4k seek={slot} oflag=direct iflag=fullblock conv=notrunc status=none"
            ))?;
            if record % 3 == 0 {
                disk.sh(flush)?;
                disk.mark(&format!("flushed {record}"))?;
            }
        }
        Ok(())
    })
}
