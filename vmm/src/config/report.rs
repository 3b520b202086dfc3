//! Diagnostics: what is wrong with a configuration, where, and what to write instead.
//!
//! Every problem found is kept, so that one run of `bulkhead check` shows them all. Text of the
//! configuration file reaches the terminal only through `annotate-snippets`, which replaces
//! control characters.

use std::fmt;
use std::io::Write;
use std::ops::Range;

use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

/// A range of bytes of the configuration file.
pub(crate) type Span = Range<usize>;

/// How bad a diagnostic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// The machine cannot run.
    Error,
    /// The machine runs, though perhaps not as wished.
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

/// A remark on a piece of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    /// The offending bytes.
    pub(crate) span: Span,
    /// What is wrong with them.
    pub(crate) text: String,
}

/// What a diagnostic is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host, and no line of the configuration.
    Host,
    /// The configuration file, and no line of it: something is missing.
    File,
    /// A piece of the configuration file.
    Text(Label),
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diagnostic {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// The problem in one sentence.
    pub(crate) message: String,
    /// Where it is.
    pub(crate) place: Place,
    /// Another place which has a part in it.
    pub(crate) related: Option<Box<Label>>,
    /// What to do about it.
    pub(crate) help: Option<String>,
}

impl Diagnostic {
    /// An error of the host until [`at`](Self::at) gives it a place.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        let (message, place) = (message.into(), Place::Host);
        Self { severity: Severity::Error, message, place, related: None, help: None }
    }

    /// A warning.
    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Says where the problem is.
    #[must_use]
    pub(crate) fn at(self, span: Span, text: impl Into<String>) -> Self {
        Self { place: Place::Text(Label { span, text: text.into() }), ..self }
    }

    /// Says that the file as a whole is concerned.
    #[must_use]
    pub(crate) fn in_file(self) -> Self {
        Self { place: Place::File, ..self }
    }

    /// Points at a second place.
    #[must_use]
    pub(crate) fn related(self, span: Span, text: impl Into<String>) -> Self {
        Self { related: Some(Box::new(Label { span, text: text.into() })), ..self }
    }

    /// Says what to do.
    #[must_use]
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// The order of the file; what has no line comes last.
    fn order(&self) -> (u8, usize) {
        match &self.place {
            Place::Text(label) => (0, label.span.start),
            Place::File => (1, 0),
            Place::Host => (2, 0),
        }
    }
}

/// All that is to be said about one configuration file.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    file: String,
    text: String,
    diagnostics: Vec<Diagnostic>,
}

impl Report {
    /// A report on the file named `file`, which holds `text`.
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

    /// Prints the report to standard error, in colour where that is a terminal which wants it.
    pub(crate) fn print(&self) {
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stderr());
        let width = size.map_or(DEFAULT_TERM_WIDTH, |size| usize::from(size.ws_col));
        let text = self.render(&Renderer::styled().term_width(width.max(40)));
        // Without a standard error there is nobody left to tell.
        let _ = anstream::stderr().write_all(text.as_bytes());
    }

    /// Tells the log of the warnings.
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
        let group = match &diagnostic.place {
            Place::Host => group,
            Place::File => group.element(Origin::path(&self.file)),
            Place::Text(label) => {
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

    /// All errors in a line, and what to do about the first.
    pub(crate) fn in_short(&self) -> (String, String) {
        let errors = || self.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        let text = |diagnostic: &Diagnostic| match &diagnostic.place {
            Place::Text(label) => format!("{}: {}", diagnostic.message, label.text),
            Place::Host | Place::File => diagnostic.message.clone(),
        };
        let help = errors().find_map(|diagnostic| diagnostic.help.clone());
        (errors().map(text).collect::<Vec<_>>().join("; "), help.unwrap_or_default())
    }

    /// The diagnostics for a program to read.
    pub(crate) fn to_json(&self) -> Value {
        self.diagnostics.iter().map(|diagnostic| self.diagnostic_json(diagnostic)).collect()
    }

    fn diagnostic_json(&self, diagnostic: &Diagnostic) -> Value {
        let (label, file) = match &diagnostic.place {
            Place::Host => (None, None),
            Place::File => (None, Some(&self.file)),
            Place::Text(label) => (Some(label), Some(&self.file)),
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

    /// Line and column, in characters, both counted from one.
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
