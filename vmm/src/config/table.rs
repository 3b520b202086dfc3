//! Strict reading of one TOML table.
//!
//! A key becomes known when it is read, so the list of known keys cannot differ from the keys that
//! the code reads.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Diagnostic, Span};
use super::value::{InvalidValue, Read, closest_word};

/// Reads a table key by key and reports every key that is left.
pub(super) struct TableReader<'t, 'd> {
    name: &'static str,
    span: Span,
    table: &'t DeTable<'t>,
    known: Vec<&'static str>,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'t, 'd> TableReader<'t, 'd> {
    /// `name` is the table's name in messages, `span` the place of its header.
    pub(super) fn new(
        name: &'static str,
        span: Span,
        table: &'t DeTable<'t>,
        diagnostics: &'d mut Vec<Diagnostic>,
    ) -> Self {
        Self { name, span, table, known: Vec::new(), diagnostics }
    }

    /// The span of the header.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Whether `key` is present, valid or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Adds a diagnostic.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// The value of `key`, or `None` if it is absent or invalid. An invalid value is reported.
    /// `example` is a valid value in TOML.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        self.known.push(key);
        let value = self.table.get(key)?;
        match read(value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(InvalidValue { problem, label, help }) => {
                let help = help.unwrap_or_else(|| format!("write `{key} = {example}`"));
                let message = format!("`{key}` {problem}");
                self.report(Diagnostic::error(message).at(value.span(), label).help(help));
                None
            }
        }
    }

    /// Like [`optional`](Self::optional), but an absent key is an error.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        if !self.has(key) {
            let name = self.name;
            self.report(
                Diagnostic::error(format!("`{name}` has no `{key}`"))
                    .at(self.span(), format!("needs `{key}`"))
                    .help(format!("add `{key} = {example}`")),
            );
        }
        self.optional(key, example, read)
    }

    /// Reports the keys that were not read.
    pub(super) fn report_unknown_keys(self) {
        report_unknown(self.table, "key", self.name, &self.known, self.diagnostics);
    }
}

/// Reports each key of `table` that is not in `known`.
pub(super) fn report_unknown(
    table: &DeTable<'_>,
    kind: &str,
    container: &str,
    known: &[&'static str],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
        let word = key.get_ref();
        let label = match closest_word(word, known) {
            Some(candidate) => format!("did you mean `{candidate}`?"),
            None => format!("not a {kind} of {container}"),
        };
        diagnostics.push(
            Diagnostic::error(format!("unknown {kind} `{word}`"))
                .at(key.span(), label)
                .help(format!("the {kind}s of {container} are: {}", known.join(", "))),
        );
    }
}
