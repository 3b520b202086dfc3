//! From the text of a file to its tables. Pure: does not access the host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::disk_keys::{self, DISK_KEYS, THIN_KEYS};
use super::limits::{CONSOLE_FILE_BYTES, CONTROLLER_MAX, VCPUS_MAX};
use super::report::Diagnostic;
use super::source::{
    ConsoleTable, ControllerTable, DiskFileSource, DiskTable, KernelTable, MachineSource,
    MachineTable, NetTable,
};
use super::syntax::syntax_errors;
use super::table::{TableReader, report_unknown};
use super::{rules, size, value};

const VCPUS: u16 = 1;
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// The tables of a machine's file, whose relative paths start at `folder`. Without an error among
/// the diagnostics the source is complete.
pub(super) fn parse_machine(text: &str, folder: &Path) -> (Option<MachineSource>, Vec<Diagnostic>) {
    with_reader(text, folder, |reader| {
        let source = reader.machine_file();
        rules::check(&source, reader.diagnostics);
        source
    })
}

/// The tables of a file that describes one disk to serve.
pub(super) fn parse_disk_file(
    text: &str,
    folder: &Path,
) -> (Option<DiskFileSource>, Vec<Diagnostic>) {
    with_reader(text, folder, |reader| {
        let source = reader.disk_file();
        rules::check_disks(source.disk.as_slice(), reader.diagnostics);
        source
    })
}

/// The `[[disk]]` of a file that describes one disk to attach, and nothing else.
pub(super) fn parse_attached(text: &str, folder: &Path) -> (Option<DiskTable>, Vec<Diagnostic>) {
    let (disk, diagnostics) = with_reader(text, folder, |reader| {
        let disk = reader.attached_disk();
        rules::check_disks(disk.as_slice(), reader.diagnostics);
        disk
    });
    (disk.flatten(), diagnostics)
}

/// Whether the text describes a disk to serve rather than a machine.
pub(super) fn is_disk_file(text: &str) -> bool {
    let (tree, _) = DeTable::parse_recoverable(text);
    let root = tree.get_ref();
    let is_machine = root.contains_key("machine") || root.contains_key("kernel");
    !is_machine && root.get("disk").is_some_and(|disk| disk.get_ref().as_table().is_some())
}

fn with_reader<T>(
    text: &str,
    folder: &Path,
    read: impl FnOnce(&mut Reader<'_, '_>) -> T,
) -> (Option<T>, Vec<Diagnostic>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // The tree after a syntax error is a guess, and so would be its diagnostics.
        return (None, syntax_errors(text, &errors));
    }
    let mut diagnostics = Vec::new();
    let mut reader = Reader { root: tree.get_ref(), folder, diagnostics: &mut diagnostics };
    let read = read(&mut reader);
    (Some(read), diagnostics)
}

struct Reader<'t, 'd> {
    root: &'t DeTable<'t>,
    folder: &'d Path,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'t> Reader<'t, '_> {
    fn machine_file(&mut self) -> MachineSource {
        const TABLES: [&str; 7] =
            ["machine", "kernel", "disk", "scsi", "net", "console", "control"];
        report_unknown(self.root, "table", "a configuration", &TABLES, self.diagnostics);
        let (machine, kernel) = (self.machine(), self.kernel());
        let disks = self.tables("disk", "[[disk]]");
        let disks = disks.iter().map(|table| self.disk("[[disk]]", table)).collect();
        let controllers = self.tables("scsi", "[[scsi]]");
        let controllers = controllers.iter().map(|table| self.controller(table)).collect();
        let nets = self.tables("net", "[[net]]");
        let nets = nets.iter().map(|table| self.net(table)).collect();
        let (console, control) = (self.console(), self.control());
        MachineSource { machine, kernel, disks, controllers, nets, console, control }
    }

    fn disk_file(&mut self) -> DiskFileSource {
        const TABLES: [&str; 2] = ["disk", "control"];
        report_unknown(self.root, "table", "a disk's configuration", &TABLES, self.diagnostics);
        let table = self.required_table("disk", "id = \"root\"");
        let disk = table.map(|table| self.disk("[disk]", &table));
        DiskFileSource { disk, control: self.control() }
    }

    fn attached_disk(&mut self) -> Option<DiskTable> {
        report_unknown(self.root, "table", "a disk to attach", &["disk"], self.diagnostics);
        let tables = self.tables("disk", "[[disk]]");
        let mut disks: Vec<_> = tables.iter().map(|table| self.disk("[[disk]]", table)).collect();
        if let Some(second) = disks.get(1) {
            self.diagnostics.push(
                Diagnostic::error("the file has more than one disk")
                    .at(second.header.clone(), "the second")
                    .help("attach them one by one, each from its own file"),
            );
        } else if disks.is_empty() && !self.root.contains_key("disk") {
            let help = "add `[[disk]]`, with the keys of a disk in a machine's configuration";
            let missing = Diagnostic::error("the file has no `[[disk]]`").in_file();
            self.diagnostics.push(missing.help(help));
        }
        disks.truncate(1);
        disks.pop()
    }

    /// The single table `name`.
    fn table(&mut self, name: &str) -> Option<Spanned<&'t DeTable<'t>>> {
        let value = self.root.get(name)?;
        if let Some(table) = value.get_ref().as_table() {
            return Some(Spanned::new(value.span(), table));
        }
        let message = format!("`{name}` must be one table");
        let label = match value.get_ref().as_array() {
            Some(_) => "this is a list of tables",
            None => "this is a value",
        };
        let help = format!("write `[{name}]` once, and its keys below");
        self.diagnostics.push(Diagnostic::error(message).at(value.span(), label).help(help));
        None
    }

    fn required_table(&mut self, name: &str, example: &str) -> Option<Spanned<&'t DeTable<'t>>> {
        if !self.root.contains_key(name) {
            self.diagnostics.push(
                Diagnostic::error(format!("the configuration has no `[{name}]`"))
                    .in_file()
                    .help(format!("add `[{name}]`, and below it `{example}`")),
            );
        }
        self.table(name)
    }

    /// All tables `[[name]]`.
    fn tables(&mut self, name: &str, header: &str) -> Vec<Spanned<&'t DeTable<'t>>> {
        let Some(value) = self.root.get(name) else { return Vec::new() };
        let invalid = |span, label| {
            let message = format!("`{name}` must be a list of tables");
            let help = format!("write `{header}`, once for each");
            Diagnostic::error(message).at(span, label).help(help)
        };
        let Some(items) = value.get_ref().as_array() else {
            let label = match value.get_ref() {
                DeValue::Table(_) => "this is a single table",
                _ => "this is a value",
            };
            self.diagnostics.push(invalid(value.span(), label));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Spanned::new(item.span(), table)),
                None => self.diagnostics.push(invalid(item.span(), "this is a value")),
            }
        }
        tables
    }

    fn open<'r>(
        &'r mut self,
        name: &'static str,
        table: &Spanned<&'t DeTable<'t>>,
    ) -> TableReader<'t, 'r> {
        TableReader::new(name, table.span(), table.get_ref(), self.diagnostics)
    }

    fn machine(&mut self) -> MachineTable {
        let mut machine =
            MachineTable { vcpus: None, memory: None, shutdown_grace: SHUTDOWN_GRACE };
        let Some(table) = self.required_table("machine", "memory = \"1GiB\"") else {
            return machine;
        };
        let mut table = self.open("[machine]", &table);
        machine.vcpus = table.optional("vcpus", "2", |v| value::integer(v, 1..=VCPUS_MAX));
        if !table.has("vcpus") {
            machine.vcpus = Some(Spanned::new(table.span(), VCPUS));
        }
        machine.memory = table.required("memory", "\"1GiB\"", size::memory);
        if let Some(grace) = table.optional("shutdown_grace", "\"30s\"", value::duration) {
            machine.shutdown_grace = grace.into_inner();
        }
        table.report_unknown_keys();
        machine
    }

    fn kernel(&mut self) -> KernelTable {
        let Some(table) = self.required_table("kernel", "image = \"vmlinuz\"") else {
            return KernelTable::default();
        };
        let folder = self.folder;
        let path = |value: &DeValue<'_>| value::path(value, folder);
        let mut table = self.open("[kernel]", &table);
        let image = table.required("image", "\"vmlinuz\"", path);
        let initramfs = table.optional("initramfs", "\"initramfs.img\"", path);
        let cmdline = table.optional("cmdline", "\"console=ttyS0\"", value::cmdline);
        table.report_unknown_keys();
        KernelTable { image, initramfs, cmdline: cmdline.map(Spanned::into_inner) }
    }

    fn disk(&mut self, name: &'static str, table: &Spanned<&'t DeTable<'t>>) -> DiskTable {
        let folder = self.folder;
        let mut disk = DiskTable::new(table.span());
        let mut reader = self.open(name, table);
        disk_keys::read(&mut reader, &DISK_KEYS, &mut disk, folder);
        reader.report_unknown_keys();
        let thin = table.get_ref().get("thin");
        if let Some((thin, table)) = thin.and_then(|thin| Some((thin, thin.get_ref().as_table()?)))
        {
            let mut reader = self.open("[disk.thin]", &Spanned::new(thin.span(), table));
            disk_keys::read(&mut reader, &THIN_KEYS, &mut disk, folder);
            reader.report_unknown_keys();
        }
        disk
    }

    fn controller(&mut self, table: &Spanned<&'t DeTable<'t>>) -> ControllerTable {
        let mut table = self.open("[[scsi]]", table);
        let header = table.span();
        let mut number =
            table.optional("controller", "0", |v| value::integer(v, 0..=CONTROLLER_MAX));
        if !table.has("controller") {
            number = Some(Spanned::new(header.clone(), 0));
        }
        let queues = table.optional("queues", "1", |v| value::integer(v, 1..=VCPUS_MAX));
        table.report_unknown_keys();
        ControllerTable { header, number, queues }
    }

    fn net(&mut self, table: &Spanned<&'t DeTable<'t>>) -> NetTable {
        let mut table = self.open("[[net]]", table);
        let tap = table.required("tap", "\"tap0\"", value::tap);
        let mac = table.optional("mac", "\"02:00:00:00:00:01\"", value::mac);
        let header = table.span();
        table.report_unknown_keys();
        NetTable { header, tap, mac }
    }

    fn console(&mut self) -> ConsoleTable {
        let Some(table) = self.table("console") else { return ConsoleTable::Stdio };
        let folder = self.folder;
        let mut table = self.open("[console]", &table);
        let file = table.optional("file", "\"console.log\"", |v| value::path(v, folder));
        let socket =
            table.optional("socket", "\"console.sock\"", |v| value::socket_path(v, folder));
        let mode = table.optional("mode", "\"off\"", |v| value::one_of(v, &["stdio", "off"]));
        let limit = table.optional("file_limit", "\"16MiB\"", size::console_file);
        let mut spans: Vec<_> = [
            file.as_ref().map(Spanned::span),
            socket.as_ref().map(Spanned::span),
            mode.as_ref().map(Spanned::span),
        ]
        .into_iter()
        .flatten()
        .collect();
        spans.sort_by_key(|span| span.start);
        if let [first, second, ..] = spans.as_slice() {
            table.report(
                Diagnostic::error("`[console]` has two destinations")
                    .at(second.clone(), "the second")
                    .related(first.clone(), "the first")
                    .help("keep one of `file`, `socket` and `mode`"),
            );
        }
        if let (Some(limit), None) = (&limit, &file) {
            table.report(
                Diagnostic::error("`file_limit` without `file`")
                    .at(limit.span(), "limits no file")
                    .help("add `file = \"console.log\"`, or remove `file_limit`"),
            );
        }
        table.report_unknown_keys();
        let limit = limit.map_or(CONSOLE_FILE_BYTES, Spanned::into_inner);
        match (file, socket, mode.map(Spanned::into_inner)) {
            (Some(path), _, _) => ConsoleTable::File { path, limit },
            (_, Some(socket), _) => ConsoleTable::Socket(socket),
            (_, _, Some("off")) => ConsoleTable::Off,
            _ => ConsoleTable::Stdio,
        }
    }

    fn control(&mut self) -> Option<Spanned<PathBuf>> {
        let table = self.table("control")?;
        let folder = self.folder;
        let mut table = self.open("[control]", &table);
        let path = table.required("socket", "\"control.sock\"", |v| value::socket_path(v, folder));
        table.report_unknown_keys();
        path
    }
}
