//! File descriptors and threads: the needs of the configuration, compared with this process.

use crate::config::needs::ResourceNeeds;
use crate::config::report::Diagnostic;
use crate::process_limits::ProcessLimits;

/// An error for each limit that is too low.
pub(in crate::config) fn check_limits(
    needs: ResourceNeeds,
    limits: &ProcessLimits,
) -> impl Iterator<Item = Diagnostic> {
    let exceeded = needs.exceeded(limits).into_iter();
    exceeded.map(|exceeded| Diagnostic::error(exceeded.to_string()).help(exceeded.remedy()))
}
