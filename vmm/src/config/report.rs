//! Diagnostics: the problems of a configuration, their places, and how to solve them.
//!
//! Every problem is kept, so that one run of `bulkhead check` shows all of them. The file's text
//! reaches the terminal only through `annotate-snippets`, which replaces control characters of
//! titles and snippets, but not of labels and remedies: those are sanitized here.

use std::fmt;
use std::ops::Range;

use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use crate::sanitize::sanitize;

use crate::log;

/// A range of bytes in the configuration file.
pub(crate) type Span = Range<usize>;

/// Severity of a diagnostic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The machine cannot run.
    Error,
    /// The machine can run, with a likely mistake.
    Warning,
}

impl Severity {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }

    const fn level(self) -> Level<'static> {
        match self {
            Self::Error => Level::ERROR,
            Self::Warning => Level::WARNING,
        }
    }
}

/// A remark on a range of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) span: Span,
    pub(crate) text: String,
}

/// The place of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// The host, not the configuration.
    Host,
    /// The file as a whole, for example because a table is missing.
    File,
    /// A range of the file.
    Text(Label),
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    pub(crate) severity: Severity,
    /// The problem in one sentence.
    pub(crate) message: String,
    pub(crate) location: Location,
    /// A second range that is part of the problem.
    pub(crate) related: Option<Box<Label>>,
    /// The remedy.
    pub(crate) help: Option<String>,
}

impl Diagnostic {
    /// An error of the host, until [`at`](Self::at) or [`in_file`](Self::in_file) locates it.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        let (message, location) = (message.into(), Location::Host);
        Self { severity: Severity::Error, message, location, related: None, help: None }
    }

    /// A warning.
    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Sets the place of the problem.
    #[must_use]
    pub(crate) fn at(self, span: Span, text: impl Into<String>) -> Self {
        Self { location: Location::Text(Label { span, text: sanitize(&text.into()) }), ..self }
    }

    /// Locates the problem in the file as a whole.
    #[must_use]
    pub(crate) fn in_file(self) -> Self {
        Self { location: Location::File, ..self }
    }

    /// Adds a second place.
    #[must_use]
    pub(crate) fn related(self, span: Span, text: impl Into<String>) -> Self {
        Self { related: Some(Box::new(Label { span, text: sanitize(&text.into()) })), ..self }
    }

    /// Adds the remedy.
    #[must_use]
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(sanitize(&help.into())), ..self }
    }

    /// Sort key: file order, then problems without a line.
    fn order(&self) -> (u8, usize) {
        match &self.location {
            Location::Text(label) => (0, label.span.start),
            Location::File => (1, 0),
            Location::Host => (2, 0),
        }
    }
}

/// All diagnostics of one configuration file.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    file: String,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// A report on `file`, whose content is `text`.
    pub(crate) fn new(file: String, text: String, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by_key(Diagnostic::order);
        Self { file, text, diagnostics }
    }

    /// Whether the machine cannot run.
    pub(crate) fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == severity).count()
    }

    /// Prints the report to standard error.
    pub(crate) fn print(&self) {
        let width = log::terminal_columns().map_or(DEFAULT_TERM_WIDTH, usize::from);
        log::print_styled(&self.render(&Renderer::styled().term_width(width.max(40))));
    }

    /// Logs the warnings.
    pub(crate) fn log_warnings(&self) {
        for diagnostic in self.diagnostics.iter().filter(|d| d.severity == Severity::Warning) {
            tracing::warn!("{}: {}", self.file, diagnostic.message);
        }
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut out = String::new();
        for diagnostic in &self.diagnostics {
            out += &renderer.render(&[self.group(diagnostic)]);
            out += "\n\n";
        }
        if self.has_errors() && self.diagnostics.len() > 1 {
            let title = Level::ERROR.primary_title(self.tally());
            out += &renderer.render(&[Group::with_title(title)]);
            out.push('\n');
        }
        out
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let title = diagnostic.severity.level().primary_title(&diagnostic.message);
        let group = Group::with_title(title);
        let group = match &diagnostic.location {
            Location::Host => group,
            Location::File => group.element(Origin::path(&self.file)),
            Location::Text(label) => {
                let related = diagnostic.related.as_ref().map(|related| {
                    AnnotationKind::Context.span(related.span.clone()).label(&related.text)
                });
                group.element(
                    Snippet::source(&self.text)
                        .path(&self.file)
                        .annotation(
                            AnnotationKind::Primary.span(label.span.clone()).label(&label.text),
                        )
                        .annotations(related),
                )
            }
        };
        group.elements(diagnostic.help.as_ref().map(|help| Level::HELP.message(help)))
    }

    fn tally(&self) -> String {
        let plural = |count, word| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let errors = plural(self.count(Severity::Error), "error");
        match self.count(Severity::Warning) {
            0 => format!("{} has {errors}", self.file),
            warnings => format!("{} has {errors} and {}", self.file, plural(warnings, "warning")),
        }
    }

    /// All errors in one line, and the first remedy.
    pub(crate) fn summary(&self) -> (String, String) {
        let errors = || self.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        let text = |diagnostic: &Diagnostic| match &diagnostic.location {
            Location::Text(label) => format!("{}: {}", diagnostic.message, label.text),
            Location::Host | Location::File => diagnostic.message.clone(),
        };
        let help = errors().find_map(|diagnostic| diagnostic.help.clone());
        (errors().map(text).collect::<Vec<_>>().join("; "), help.unwrap_or_default())
    }

    /// The diagnostics as JSON.
    pub(crate) fn to_json(&self) -> Value {
        self.diagnostics.iter().map(|diagnostic| self.diagnostic_json(diagnostic)).collect()
    }

    fn diagnostic_json(&self, diagnostic: &Diagnostic) -> Value {
        let (label, file) = match &diagnostic.location {
            Location::Host => (None, None),
            Location::File => (None, Some(&self.file)),
            Location::Text(label) => (Some(label), Some(&self.file)),
        };
        json!({
            "severity": diagnostic.severity.name(),
            "message": diagnostic.message,
            "file": file,
            "primary": label.map(|label| self.label_json(label)),
            "related": diagnostic.related.as_ref().map(|label| self.label_json(label)),
            "help": diagnostic.help,
        })
    }

    fn label_json(&self, label: &Label) -> Value {
        let (line, column) = self.line_column(label.span.start);
        json!({
            "line": line,
            "column": column,
            "start_byte": label.span.start,
            "end_byte": label.span.end,
            "label": label.text,
        })
    }

    /// Line and column in characters, both from 1.
    fn line_column(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let column = before.get(line_start..).map_or(0, |line| line.chars().count());
        (before.matches('\n').count() + 1, column + 1)
    }
}

/// The report without colour.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mount point, for instance, may have any name.
    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = "path = \"a\"\n".to_owned();
        let place = Diagnostic::warning("title \x1b[2J").at(0..4, "label \x1b[2J");
        let report = Report::new("x.toml".to_owned(), text, vec![place.help("remedy \x1b[2J")]);
        let shown = report.render(&Renderer::plain());
        assert!(shown.contains("remedy \u{fffd}[2J"), "{shown}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
    }
}
