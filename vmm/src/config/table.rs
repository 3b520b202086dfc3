//! Reading one TOML table strictly.
//!
//! A key is known because it was asked for, so that the list of known keys cannot drift from the
//! code that reads them.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Diagnostic, Span};
use super::value::{Read, Wrong, did_you_mean};

/// A table of which every key must be asked for.
pub(super) struct Table<'t, 'd> {
    name: &'static str,
    span: Span,
    table: &'t DeTable<'t>,
    asked: Vec<&'static str>,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl<'t, 'd> Table<'t, 'd> {
    /// `name` as messages show it; `span` of its header.
    pub(super) fn new(
        name: &'static str,
        span: Span,
        table: &'t DeTable<'t>,
        diagnostics: &'d mut Vec<Diagnostic>,
    ) -> Self {
        Self { name, span, table, asked: Vec::new(), diagnostics }
    }

    /// The span of the header.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Whether `key` is given, right or wrong.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Adds a problem.
    pub(super) fn report(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// The value of `key`, or nothing where it is absent or refused; a refused one is reported.
    /// `example` is a value as one would write it.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&'t DeValue<'t>) -> Read<T>,
    ) -> Option<Spanned<T>> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        match read(value.get_ref()) {
            Ok(read) => Some(Spanned::new(value.span(), read)),
            Err(Wrong { what, label, help }) => {
                let help = help.unwrap_or_else(|| format!("write `{key} = {example}`"));
                let message = format!("`{key}` {what}");
                self.report(Diagnostic::error(message).at(value.span(), label).help(help));
                None
            }
        }
    }

    /// As [`optional`](Self::optional), but an absent key is reported too.
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

    /// Reports the keys nobody asked for.
    pub(super) fn finish(self) {
        report_unknown(self.table, "key", self.name, &self.asked, self.diagnostics);
    }
}

/// Reports each key of `table` which is not among `known`.
pub(super) fn report_unknown(
    table: &DeTable<'_>,
    kind: &str,
    place: &str,
    known: &[&'static str],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
        let word = key.get_ref();
        let label = match did_you_mean(word, known) {
            Some(candidate) => format!("did you mean `{candidate}`?"),
            None => format!("not a {kind} of {place}"),
        };
        diagnostics.push(
            Diagnostic::error(format!("unknown {kind} `{word}`"))
                .at(key.span(), label)
                .help(format!("the {kind}s of {place} are: {}", known.join(", "))),
        );
    }
}
