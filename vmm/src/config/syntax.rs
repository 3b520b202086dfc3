//! Diagnostics for text that is not TOML. Pure.

use super::report::{Diagnostic, Span};

const BARE_WORD: &str = "string values must be quoted";
const DUPLICATE: &str = "duplicate key";

/// The errors of the TOML parser, which continues after each. Errors after one that breaks the
/// file's structure are mostly consequences of it, and are left out.
pub(super) fn syntax_errors(text: &str, errors: &[toml::de::Error]) -> Vec<Diagnostic> {
    let mut errors: Vec<_> = errors.iter().map(|error| (syntax_span(text, error), error)).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let structural = errors.iter().position(|(_, error)| {
        !error.message().starts_with(BARE_WORD) && error.message() != DUPLICATE
    });
    errors.truncate(structural.map_or(errors.len(), |index| index + 1));
    errors.into_iter().map(|(span, error)| syntax_error(text, span, error.message())).collect()
}

fn syntax_span(text: &str, error: &toml::de::Error) -> Span {
    let span = error.span().unwrap_or(0..0);
    span.start.min(text.len())..span.end.min(text.len())
}

fn syntax_error(text: &str, span: Span, message: &str) -> Diagnostic {
    let (message, expected) = message.split_once(", expected ").unwrap_or((message, ""));
    let bare = text.get(span.clone()).unwrap_or_default();
    let diagnostic = Diagnostic::error(format!("not valid TOML: {message}"));
    match message {
        BARE_WORD if !bare.is_empty() => {
            diagnostic.at(span, "needs quotes").help(format!("write {bare:?}"))
        }
        DUPLICATE => diagnostic.at(span, "duplicate").help("keep one of the two"),
        _ if expected.is_empty() => diagnostic.at(span, "here"),
        _ => diagnostic.at(span, format!("expected {expected}")),
    }
}
