//! From the text of a configuration to its meaning. Pure: asks nothing of the host.
//!
//! Whatever is refused leaves a diagnostic and a `None` or a default behind, so that the checks
//! which follow still find the problems of everything else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{CacheMode, DetectZeroes, EngineKind, OnEnospc};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Diagnostic, Span};
use super::syntax::syntax;
use super::table::{Table, report_unknown};
use super::{
    Bus, ConsoleConfig, DiskConfig, KernelConfig, MachineConfig, NetConfig, ScsiPlace, rules, scsi,
    value,
};

/// A configuration as written, each value with its place.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) machine: Machine,
    pub(super) kernel: Kernel,
    pub(super) disks: Vec<Disk>,
    pub(super) controllers: Vec<Controller>,
    pub(super) nets: Vec<Net>,
    pub(super) console: Console,
    pub(super) control: Option<Spanned<PathBuf>>,
}

/// One disk as written, to be served without a machine.
#[derive(Debug)]
pub(super) struct DiskSource {
    /// Nothing where there is none, which is reported.
    pub(super) disk: Option<Disk>,
    pub(super) control: Option<Spanned<PathBuf>>,
}

#[derive(Debug)]
pub(super) struct Machine {
    /// Stands at the header where it is the default.
    pub(super) vcpus: Option<Spanned<u16>>,
    pub(super) memory: Option<Spanned<u64>>,
    pub(super) shutdown_grace: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) image: Option<Spanned<PathBuf>>,
    pub(super) initramfs: Option<Spanned<PathBuf>>,
    pub(super) cmdline: Option<String>,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) header: Span,
    pub(super) id: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<PathBuf>>,
    pub(super) cache: Option<Spanned<CacheMode>>,
    pub(super) bus: BusKind,
    pub(super) controller: Option<Spanned<u16>>,
    pub(super) target: Option<Spanned<u16>>,
    pub(super) lun: Option<Spanned<u16>>,
    /// Nothing where it was refused.
    pub(super) readonly: Option<bool>,
    pub(super) queues: Option<Spanned<u16>>,
    pub(super) serial: Option<Spanned<String>>,
    pub(super) block_size: Option<u32>,
    pub(super) engine: Option<EngineKind>,
    pub(super) holds: bool,
    pub(super) hold_deadline: Option<Spanned<Duration>>,
    pub(super) discard: Option<bool>,
    pub(super) detect_zeroes: Option<Spanned<DetectZeroes>>,
    pub(super) soft_limit: Option<Spanned<u8>>,
}

/// A SCSI controller that is there whether or not a disk is on it.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) header: Span,
    /// Stands at the header where it is the default; nothing where it was refused.
    pub(super) number: Option<Spanned<u16>>,
    pub(super) queues: Option<Spanned<u16>>,
}

/// What carries a disk, apart from its place there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BusKind {
    #[default]
    VirtioBlk,
    VirtioScsi,
}

#[derive(Debug)]
pub(super) struct Net {
    pub(super) header: Span,
    pub(super) tap: Option<Spanned<String>>,
    pub(super) mac: Option<Spanned<[u8; 6]>>,
}

#[derive(Debug)]
pub(super) enum Console {
    Stdio,
    File(Spanned<PathBuf>),
    Socket(Spanned<PathBuf>),
    Off,
}

/// The local APIC's ids are eight bits wide; 255 is the broadcast, and one is left to the I/O APIC.
const VCPUS_MAX: u16 = 254;
const VCPUS: u16 = 1;
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);
const CMDLINE: &str = "console=ttyS0";
const QUEUES: u16 = 4;
const HOLD_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// Reads `text`, whose relative paths start at `folder`. Without an error among the diagnostics,
/// the source is complete: [`Source::build`] gives a machine.
pub(super) fn parse(text: &str, folder: &Path) -> (Option<Source>, Vec<Diagnostic>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // The tree after a syntax error is a guess, and so would be complaints about it.
        return (None, syntax(text, &errors));
    }
    let mut diagnostics = Vec::new();
    let source = Reader { root: tree.get_ref(), folder, diagnostics: &mut diagnostics }.source();
    rules::check(&source, &mut diagnostics);
    (Some(source), diagnostics)
}

/// As [`parse`], for a file that describes one disk.
pub(super) fn parse_disk(text: &str, folder: &Path) -> (Option<DiskSource>, Vec<Diagnostic>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return (None, syntax(text, &errors));
    }
    let mut diagnostics = Vec::new();
    let reader = Reader { root: tree.get_ref(), folder, diagnostics: &mut diagnostics };
    let source = reader.disk_source();
    rules::check_disks(source.disk.as_slice(), &mut diagnostics);
    (Some(source), diagnostics)
}

/// As [`parse`], for a file that describes a disk of a machine that runs: one `[[disk]]`, and nothing else.
pub(super) fn parse_attached(text: &str, folder: &Path) -> (Option<Disk>, Vec<Diagnostic>) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return (None, syntax(text, &errors));
    }
    let mut diagnostics = Vec::new();
    let reader = Reader { root: tree.get_ref(), folder, diagnostics: &mut diagnostics };
    let disk = reader.attached();
    rules::check_disks(disk.as_slice(), &mut diagnostics);
    (disk, diagnostics)
}

/// Whether the text describes a disk rather than a machine.
pub(super) fn is_disk(text: &str) -> bool {
    let (tree, _) = DeTable::parse_recoverable(text);
    let root = tree.get_ref();
    let is_machine = root.contains_key("machine") || root.contains_key("kernel");
    !is_machine && root.get("disk").is_some_and(|disk| disk.get_ref().as_table().is_some())
}

struct Reader<'t, 'd> {
    root: &'t DeTable<'t>,
    folder: &'d Path,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'t> Reader<'t, '_> {
    fn source(mut self) -> Source {
        const TABLES: [&str; 7] =
            ["machine", "kernel", "disk", "scsi", "net", "console", "control"];
        report_unknown(self.root, "table", "a configuration", &TABLES, self.diagnostics);
        Source {
            machine: self.machine(),
            kernel: self.kernel(),
            disks: self
                .tables("disk", "[[disk]]")
                .iter()
                .map(|disk| self.disk("[[disk]]", disk))
                .collect(),
            controllers: self
                .tables("scsi", "[[scsi]]")
                .iter()
                .map(|scsi| self.controller(scsi))
                .collect(),
            nets: self.tables("net", "[[net]]").iter().map(|net| self.net(net)).collect(),
            console: self.console(),
            control: self.control(),
        }
    }

    fn disk_source(mut self) -> DiskSource {
        const TABLES: [&str; 2] = ["disk", "control"];
        report_unknown(self.root, "table", "a disk's configuration", &TABLES, self.diagnostics);
        let table = self.required_table("disk", "id = \"root\"");
        DiskSource { disk: table.map(|table| self.disk("[disk]", &table)), control: self.control() }
    }

    fn attached(mut self) -> Option<Disk> {
        const WHAT: &str = "a disk to attach";
        report_unknown(self.root, "table", WHAT, &["disk"], self.diagnostics);
        let tables = self.tables("disk", "[[disk]]");
        let mut disks: Vec<_> = tables.iter().map(|disk| self.disk("[[disk]]", disk)).collect();
        if let Some(second) = disks.get(1) {
            self.diagnostics.push(
                Diagnostic::error("there is more than one disk")
                    .at(second.header.clone(), "the second")
                    .help("attach one after the other, each from a file of its own"),
            );
        } else if disks.is_empty() && !self.root.contains_key("disk") {
            let none = Diagnostic::error("there is no `[[disk]]`").in_file();
            let help = "add `[[disk]]`, and below it the keys of a disk as a machine's configuration has them";
            self.diagnostics.push(none.help(help));
        }
        disks.truncate(1);
        disks.pop()
    }

    /// The one table `name`.
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
        let wrong = |span, label| {
            let message = format!("`{name}` must be a list of tables");
            let help = format!("write `{header}`, once for each");
            Diagnostic::error(message).at(span, label).help(help)
        };
        let Some(items) = value.get_ref().as_array() else {
            let label = match value.get_ref() {
                DeValue::Table(_) => "this is a single table",
                _ => "this is a value",
            };
            self.diagnostics.push(wrong(value.span(), label));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_table() {
                Some(table) => tables.push(Spanned::new(item.span(), table)),
                None => self.diagnostics.push(wrong(item.span(), "this is a value")),
            }
        }
        tables
    }

    fn open<'r>(
        &'r mut self,
        name: &'static str,
        table: &Spanned<&'t DeTable<'t>>,
    ) -> Table<'t, 'r> {
        Table::new(name, table.span(), table.get_ref(), self.diagnostics)
    }

    fn machine(&mut self) -> Machine {
        let mut machine = Machine { vcpus: None, memory: None, shutdown_grace: SHUTDOWN_GRACE };
        let Some(table) = self.required_table("machine", "memory = \"1GiB\"") else {
            return machine;
        };
        let mut table = self.open("[machine]", &table);
        machine.vcpus = table.optional("vcpus", "2", |v| value::integer(v, 1..=VCPUS_MAX));
        if !table.has("vcpus") {
            machine.vcpus = Some(Spanned::new(table.span(), VCPUS));
        }
        machine.memory = table.required("memory", "\"1GiB\"", value::memory);
        if let Some(grace) = table.optional("shutdown_grace", "\"30s\"", value::duration) {
            machine.shutdown_grace = grace.into_inner();
        }
        table.finish();
        machine
    }

    fn kernel(&mut self) -> Kernel {
        let Some(table) = self.required_table("kernel", "image = \"vmlinuz\"") else {
            return Kernel::default();
        };
        let folder = self.folder;
        let mut table = self.open("[kernel]", &table);
        let image = table.required("image", "\"vmlinuz\"", |v| path(v, folder));
        let initramfs = table.optional("initramfs", "\"initramfs.img\"", |v| path(v, folder));
        let cmdline = table.optional("cmdline", "\"console=ttyS0\"", value::cmdline);
        table.finish();
        Kernel { image, initramfs, cmdline: cmdline.map(Spanned::into_inner) }
    }

    fn disk(&mut self, name: &'static str, table: &Spanned<&'t DeTable<'t>>) -> Disk {
        let folder = self.folder;
        let mut table = self.open(name, table);
        let id = table.required("id", "\"root\"", value::id);
        let path = table.required("path", "\"root.img\"", |v| path(v, folder));
        let cache = table.optional("cache", "\"writeback\"", cache);
        let bus = table.optional("bus", "\"virtio-scsi\"", bus);
        let number = |most| move |v: &DeValue<'_>| value::integer(v, 0..=most);
        let controller = table.optional("controller", "0", number(scsi::CONTROLLER_MOST));
        let target = table.optional("target", "0", number(scsi::TARGET_MOST));
        let lun = table.optional("lun", "0", number(scsi::LUN_MOST));
        let mut readonly = table.optional("readonly", "true", value::boolean);
        if !table.has("readonly") {
            readonly = Some(Spanned::new(table.span(), false));
        }
        let queues = table.optional("queues", "1", |v| value::integer(v, 1..=VCPUS_MAX));
        let serial = table.optional("serial", "\"A1B2C3\"", value::serial);
        let block_size = table.optional("block_size", "4096", value::block_size);
        let engine = table.optional("engine", "\"auto\"", engine);
        let on_enospc =
            table.optional("on_enospc", "\"hold\"", |v| value::one_of(v, &["report", "hold"]));
        let hold_deadline = table.optional("hold_deadline", "\"5m\"", value::duration);
        let discard = table.optional("discard", "\"unmap\"", discard);
        let detect_zeroes = table.optional("detect_zeroes", "\"unmap\"", detect_zeroes);
        let thin = table.optional("thin", "{ soft_limit = \"80%\" }", value::table);
        let header = table.span();
        table.finish();
        let soft_limit = thin.and_then(|thin| self.thin(&thin));
        let readonly = readonly.map(Spanned::into_inner);
        let block_size = block_size.map(Spanned::into_inner);
        let engine = engine.map(Spanned::into_inner);
        let holds = on_enospc.is_some_and(|word| *word.get_ref() == "hold");
        Disk {
            header,
            id,
            path,
            cache,
            bus: bus.map(Spanned::into_inner).unwrap_or_default(),
            controller,
            target,
            lun,
            readonly,
            queues,
            serial,
            block_size,
            engine,
            holds,
            hold_deadline,
            discard: discard.map(Spanned::into_inner),
            detect_zeroes,
            soft_limit,
        }
    }

    fn thin(&mut self, table: &Spanned<&'t DeTable<'t>>) -> Option<Spanned<u8>> {
        let mut table = self.open("[disk.thin]", table);
        let soft_limit = table.required("soft_limit", "\"80%\"", value::percent);
        table.finish();
        soft_limit
    }

    fn controller(&mut self, table: &Spanned<&'t DeTable<'t>>) -> Controller {
        let mut table = self.open("[[scsi]]", table);
        let header = table.span();
        let most = scsi::CONTROLLER_MOST;
        let mut number = table.optional("controller", "0", |v| value::integer(v, 0..=most));
        if !table.has("controller") {
            number = Some(Spanned::new(header.clone(), 0));
        }
        let queues = table.optional("queues", "1", |v| value::integer(v, 1..=VCPUS_MAX));
        table.finish();
        Controller { header, number, queues }
    }

    fn net(&mut self, table: &Spanned<&'t DeTable<'t>>) -> Net {
        let mut table = self.open("[[net]]", table);
        let tap = table.required("tap", "\"tap0\"", value::tap);
        let mac = table.optional("mac", "\"02:00:00:00:00:01\"", value::mac);
        let header = table.span();
        table.finish();
        Net { header, tap, mac }
    }

    fn console(&mut self) -> Console {
        let Some(table) = self.table("console") else { return Console::Stdio };
        let folder = self.folder;
        let mut table = self.open("[console]", &table);
        let file = table.optional("file", "\"console.log\"", |v| path(v, folder));
        let socket = table.optional("socket", "\"console.sock\"", |v| socket(v, folder));
        let mode = table.optional("mode", "\"off\"", |v| value::one_of(v, &["stdio", "off"]));
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
                Diagnostic::error("`[console]` names two places")
                    .at(second.clone(), "and the second")
                    .related(first.clone(), "the first")
                    .help("keep one of `file`, `socket` and `mode`"),
            );
        }
        table.finish();
        match (file, socket, mode.map(Spanned::into_inner)) {
            (Some(file), _, _) => Console::File(file),
            (_, Some(socket), _) => Console::Socket(socket),
            (_, _, Some("off")) => Console::Off,
            _ => Console::Stdio,
        }
    }

    fn control(&mut self) -> Option<Spanned<PathBuf>> {
        let table = self.table("control")?;
        let folder = self.folder;
        let mut table = self.open("[control]", &table);
        let path = table.required("socket", "\"control.sock\"", |v| socket(v, folder));
        table.finish();
        path
    }
}

fn path(value: &DeValue<'_>, folder: &Path) -> value::Read<PathBuf> {
    value::path(value).map(|path| folder.join(path))
}

/// `sun_path` of `sockaddr_un`, less the final NUL.
const SOCKET_PATH_MAX: usize = 108 - 1;

fn socket(value: &DeValue<'_>, folder: &Path) -> value::Read<PathBuf> {
    let path = path(value, folder)?;
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        return Err(value::Wrong {
            what: "is too long for a socket".to_owned(),
            label: format!("{length} bytes with the folder of this file"),
            help: Some(format!("write a path of at most {SOCKET_PATH_MAX} bytes")),
        });
    }
    Ok(path)
}

fn cache(value: &DeValue<'_>) -> value::Read<CacheMode> {
    let name = value::one_of(value, &CacheMode::ALL.map(CacheMode::name))?;
    name.parse().map_err(|_| value::Wrong::kind("a cache mode", value))
}

fn engine(value: &DeValue<'_>) -> value::Read<EngineKind> {
    let name = value::one_of(value, &EngineKind::ALL.map(EngineKind::name))?;
    name.parse().map_err(|_| value::Wrong::kind("an engine", value))
}

fn discard(value: &DeValue<'_>) -> value::Read<bool> {
    Ok(value::one_of(value, &["unmap", "ignore"])? == "unmap")
}

fn detect_zeroes(value: &DeValue<'_>) -> value::Read<DetectZeroes> {
    let name = value::one_of(value, &DetectZeroes::ALL.map(DetectZeroes::name))?;
    name.parse().map_err(|_| value::Wrong::kind("a way to detect zeroes", value))
}

fn bus(value: &DeValue<'_>) -> value::Read<BusKind> {
    let name = value::one_of(value, &["virtio-blk", "virtio-scsi"])?;
    Ok(if name == "virtio-scsi" { BusKind::VirtioScsi } else { BusKind::VirtioBlk })
}

impl Source {
    /// The machine, or nothing where a value was refused.
    pub(super) fn build(self) -> Option<MachineConfig> {
        let vcpus = self.machine.vcpus?.into_inner();
        let places = scsi::places(&self.disks);
        let controllers = scsi::built(&self.disks, &self.controllers, vcpus);
        Some(MachineConfig {
            vcpus: u8::try_from(vcpus).ok()?,
            memory_bytes: self.machine.memory?.into_inner(),
            shutdown_grace: self.machine.shutdown_grace,
            kernel: KernelConfig {
                image: self.kernel.image?.into_inner(),
                initramfs: self.kernel.initramfs.map(Spanned::into_inner),
                cmdline: self.kernel.cmdline.unwrap_or_else(|| CMDLINE.to_owned()),
            },
            disks: self
                .disks
                .into_iter()
                .zip(places)
                .map(|(disk, place)| disk.build(vcpus, place))
                .collect::<Option<_>>()?,
            controllers,
            nets: self.nets.into_iter().map(Net::build).collect::<Option<_>>()?,
            console: match self.console {
                Console::Stdio => ConsoleConfig::Stdio,
                Console::File(path) => ConsoleConfig::File(path.into_inner()),
                Console::Socket(path) => ConsoleConfig::Socket(path.into_inner()),
                Console::Off => ConsoleConfig::Off,
            },
            control: self.control.map(Spanned::into_inner),
        })
    }
}

/// How many queues a disk or a controller has that does not say.
pub(super) fn default_queues(vcpus: u16) -> u16 {
    vcpus.min(QUEUES)
}

impl Disk {
    /// The disk of a guest whose processors are not known.
    pub(super) fn build_alone(self) -> Option<DiskConfig> {
        self.build(VCPUS_MAX, None)
    }

    pub(super) fn build(self, vcpus: u16, place: Option<ScsiPlace>) -> Option<DiskConfig> {
        let id = self.id?.into_inner();
        Some(DiskConfig {
            path: self.path?.into_inner(),
            bus: place.map_or(Bus::VirtioBlk, Bus::VirtioScsi),
            cache: self.cache.map_or(CacheMode::WriteBack, Spanned::into_inner),
            readonly: self.readonly?,
            queues: self.queues.map_or(default_queues(vcpus), Spanned::into_inner),
            serial: self.serial.map_or_else(|| id.clone(), Spanned::into_inner),
            block_size: self.block_size,
            engine: self.engine.unwrap_or_default(),
            on_enospc: if self.holds {
                let deadline = self.hold_deadline.map_or(HOLD_DEADLINE, Spanned::into_inner);
                OnEnospc::Hold { deadline }
            } else {
                OnEnospc::Report
            },
            discard: self.discard.unwrap_or(true),
            detect_zeroes: self.detect_zeroes.map_or(DetectZeroes::Off, Spanned::into_inner),
            soft_limit: self.soft_limit.map(Spanned::into_inner),
            id,
        })
    }
}

impl Net {
    /// Its address, given or derived.
    pub(super) fn mac(&self) -> Option<[u8; 6]> {
        let given = self.mac.as_ref().map(|mac| *mac.get_ref());
        given.or_else(|| Some(value::derived_mac(self.tap.as_ref()?.get_ref())))
    }

    fn build(self) -> Option<NetConfig> {
        Some(NetConfig { mac: self.mac()?, tap: self.tap?.into_inner() })
    }
}
