//! The command that a configuration is checked for: it decides which queries may wait.

use std::path::PathBuf;

use toml::Spanned;

use crate::config::report::Diagnostic;
use crate::host_query::HostQuery;

/// The command that a configuration is checked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Purpose {
    /// A start. Waits for a slow host without limit, as opening the images does.
    Start,
    /// A report. Must not hang, and shows which process holds an image.
    Report,
}

impl Purpose {
    /// Checks the file at `path`.
    pub(in crate::config) fn check(
        self,
        path: &Spanned<PathBuf>,
        check: impl FnOnce(&Spanned<PathBuf>) -> Option<Diagnostic> + Send + 'static,
    ) -> Option<Diagnostic> {
        if self == Self::Start {
            return check(path);
        }
        let file = path.clone();
        HostQuery::start(move || check(&file)).answer().unwrap_or_else(|error| {
            let message = format!("`{}` could not be checked", path.get_ref().display());
            Some(Diagnostic::error(message).at(path.span(), error.to_string()))
        })
    }
}
