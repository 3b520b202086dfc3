//! The walkthrough of docs/crash-testing.md: a stock Debian with SQLite, from the commands of the
//! page.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Host, Output};

/// For a boot of Debian in an emulated host, and the exploration.
const LIMIT: Duration = Duration::from_secs(900);
/// Files that the emulated host lacks: SQLite's shell, of the guest's release.
const SQLITE: [&str; 4] = [
    "/usr/bin/sqlite3",
    "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0",
    "/usr/lib/x86_64-linux-gnu/libreadline.so.8",
    "/usr/lib/x86_64-linux-gnu/libtinfo.so.6",
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The commands of the walkthrough, in order.
fn commands() -> Result<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/crash-testing.md"))?;
    let (_, section) = page.split_once("\n## Walkthrough").context("the section is missing")?;
    let (section, _) = section.split_once("\n## ").context("the section does not end")?;
    let commands = section.lines().filter_map(|line| line.strip_prefix("    "));
    let commands: Vec<_> = commands.filter(|line| !line.starts_with(' ')).collect();
    Ok(commands.into_iter().map(str::to_owned).collect())
}

/// Runs a command of the page in the folder of the machine.
fn run(host: &Host, folder: &str, command: &str) -> Result<Output> {
    let output = host.try_run_for(&format!("cd {folder}; {command}"), LIMIT)?;
    println!("$ {command}\n{}", output.text);
    Ok(output)
}

/// The user makes the machine, finds that orders are lost, and mends the program.
#[test]
#[ignore = "makes a Debian of its packages, which takes minutes"]
fn the_walkthrough_finds_lost_orders_and_none_when_they_are_synced() -> Result<()> {
    let commands = commands()?;
    let [make, check, first, mend, second] = commands.as_slice() else {
        anyhow::bail!("the page has other commands: {commands:?}");
    };
    let local = tempfile::tempdir()?;
    let path = |name: &str| local.path().join(name);
    let mut command = Command::new("sh");
    command.args(["-c", make]).current_dir(local.path()).env("REPO", root().canonicalize()?);
    ensure!(command.status()?.success(), "{make}");

    let host = Host::start("walkthrough")?;
    let folder = host.path("");
    for name in ["vmlinuz", "initrd.img", "data.img", "vm.toml", "check"] {
        host.put(&path(name), name)?;
    }
    for file in SQLITE {
        let name = Path::new(file).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let dump =
            format!("dump -p {} {}", linked(&path("debian.img"), file)?, path(name).display());
        debugfs(&path("debian.img"), &dump)?;
        let file_there = host.put(&path(name), name)?;
        host.run(&format!("[ -e {file} ] || install {file_there} {file}"))?;
    }
    let bulkhead = host.put_bulkhead()?;
    host.run(&format!("ln -sf {bulkhead} /usr/bin/bulkhead; modprobe fuse"))?;
    let debian = host.lend(&path("debian.img"), "debian.img")?;
    host.run(&format!(
        "[ {debian} -ef {folder}/debian.img ] || ln -s {debian} {folder}/debian.img"
    ))?;

    ensure!(run(&host, &folder, check)?.status == 0, "{check}");
    let found = run(&host, &folder, first)?;
    ensure!(found.status == 3 && found.text.contains("were committed"), "{}", found.text);
    ensure!(run(&host, &folder, mend)?.status == 0, "{mend}");
    let clean = run(&host, &folder, second)?;
    ensure!(clean.status == 0, "{}", clean.text);
    Ok(())
}

/// The file that a path of the image is, which may be a link.
fn linked(image: &Path, file: &str) -> Result<String> {
    let shown = debugfs(image, &format!("stat {file}"))?;
    let target = shown.lines().find_map(|line| line.strip_prefix("Fast link dest: "));
    let Some(target) = target else { return Ok(file.to_owned()) };
    let folder = Path::new(file).parent().unwrap_or(Path::new("/"));
    Ok(folder.join(target.trim_matches('"')).display().to_string())
}

fn debugfs(image: &Path, request: &str) -> Result<String> {
    let output = Command::new("debugfs").args(["-R", request]).arg(image).output()?;
    ensure!(output.status.success(), "debugfs {request}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
