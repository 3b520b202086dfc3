//! The result of `bulkhead disk prove`, as text and as JSON. Pure.

use std::path::Path;

use block::{FlushPromise, ModeProof, Named, ROUNDS, StoreStack, Storey, StoreySeen};
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};

use super::selection::SelectedDisk;
use super::stack_tree;
use crate::cmd::table::TextTable;
use crate::config::DiskConfig;
use crate::sanitize::sanitize;

const BOLD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// The proofs of all cache modes.
pub(super) struct ProofReport<'p> {
    pub(super) selected: &'p SelectedDisk,
    pub(super) scratch: &'p Path,
    pub(super) stack: &'p StoreStack,
    pub(super) modes: &'p [ModeProof],
}

impl ProofReport<'_> {
    pub(super) fn text(&self) -> String {
        let path = sanitize(&self.selected.path.display().to_string());
        let scratch = sanitize(&self.scratch.display().to_string());
        let same = |one: &ModeProof, other: &ModeProof| {
            (one.promise, &one.reason) == (other.promise, &other.reason)
        };
        let verdicts: String = self.modes.chunk_by(same).map(|modes| self.verdict(modes)).collect();
        let mut out = format!(
            "{BOLD}{path}{BOLD:#}: flushes and durable writes, tried on {scratch}\n\n{verdicts}"
        );
        if self.modes.iter().any(|proof| !proof.seen.is_empty()) {
            out += &format!(
                "\n  At each storey, the rounds of {ROUNDS} with a flush / those with a \
                 write{}:\n\n{}",
                if self.has_stray() { " (+ idle windows with a flush of others)" } else { "" },
                self.table()
            );
        }
        out += "\n  A drive that completes a flush without storing its data looks like one that \
                stores it.\n";
        out
    }

    /// The verdict on modes that share it.
    fn verdict(&self, modes: &[ModeProof]) -> String {
        let Some(ModeProof { promise, reason, .. }) = modes.first() else { return String::new() };
        let (style, word) = match promise {
            FlushPromise::Kept => (GOOD, "kept"),
            FlushPromise::Unknown => (WARNING, "cannot be known"),
            FlushPromise::NotKept => (WARNING, "NOT kept"),
        };
        let own = self.selected.config.as_ref().map(|config| config.options.cache);
        let name = |proof: &ModeProof| {
            let is_own = own == Some(proof.mode);
            format!("{}{}", proof.mode.name(), if is_own { " (this disk's)" } else { "" })
        };
        let names = modes.iter().map(name).collect::<Vec<_>>().join(", ");
        let mut out = format!("  {BOLD}{names}{BOLD:#}\n");
        let text = format!("{style}{word}{style:#}: {}", sanitize(reason));
        stack_tree::push_wrapped(&mut out, text.split(' '), "    ", "    ");
        out
    }

    fn has_stray(&self) -> bool {
        self.modes.iter().flat_map(|proof| &proof.seen).any(|seen| seen.stray > 0)
    }

    /// A row for each storey, a column for each mode that was tried.
    fn table(&self) -> String {
        let tried: Vec<_> = self.modes.iter().filter(|proof| !proof.seen.is_empty()).collect();
        let names = tried.iter().map(|proof| proof.mode.name());
        let heading: Vec<_> = ["STOREY"].into_iter().chain(names).collect();
        let mut table = TextTable::new(&heading, &[false, true, true, true, true]);
        for (index, (storey, depth)) in with_depth(&self.stack.root).into_iter().enumerate() {
            let indent = "  ".repeat(depth);
            let name = sanitize(&storey.name);
            let cells = tried.iter().map(|proof| cell(proof.seen.get(index)));
            let kind = stack_tree::kind_name(&storey.kind);
            table.row([format!("{indent}{name} ({kind})")].into_iter().chain(cells).collect());
        }
        table.render()
    }

    pub(super) fn json(&self) -> String {
        let modes = self.modes.iter().map(|proof| {
            json!({
                "cache": proof.mode.name(),
                "flush": stack_tree::promise(proof.promise),
                "reason": proof.reason,
                "stopped_at": proof.stopped_at,
                "seen": proof.seen.iter().map(seen_json).collect::<Value>(),
            })
        });
        let storeys = self.stack.storeys().into_iter().map(
            |storey| json!({ "name": storey.name, "kind": stack_tree::kind_name(&storey.kind) }),
        );
        let answer = json!({
            "path": self.selected.path.display().to_string(),
            "id": self.selected.config.as_ref().map(DiskConfig::id),
            "cache": self.selected.config.as_ref().map(|config| config.options.cache.name()),
            "scratch": self.scratch.display().to_string(),
            "rounds": ROUNDS,
            "storeys": storeys.collect::<Value>(),
            "modes": modes.collect::<Value>(),
        });
        format!("{answer:#}\n")
    }
}

fn cell(seen: Option<&StoreySeen>) -> String {
    match seen {
        Some(StoreySeen { is_observed: true, written, flushed, stray, .. }) => match stray {
            0 => format!("{flushed}/{written}"),
            stray => format!("{flushed}/{written} (+{stray})"),
        },
        _ => "-".to_owned(),
    }
}

fn seen_json(seen: &StoreySeen) -> Value {
    if !seen.is_observed {
        return Value::Null;
    }
    json!({ "written": seen.written, "flushed": seen.flushed, "flushed_while_idle": seen.stray,
            "written_while_idle": seen.stray_writes })
}

/// The storeys in the order of [`StoreStack::storeys`], each with the number of those above it.
fn with_depth(root: &Storey) -> Vec<(&Storey, usize)> {
    let below = root.below.iter().flat_map(with_depth);
    let below = below.map(|(storey, depth)| (storey, depth + 1));
    [(root, 0)].into_iter().chain(below).collect()
}
