//! The trace of a schedule, which its hosts share.

use std::sync::{Arc, Mutex};

/// See the module's documentation. A clone adds to the same lines.
#[derive(Clone, Debug)]
pub(super) struct Trace {
    lines: Option<Arc<Mutex<Vec<String>>>>,
    /// The disk that a line is about, if there are several.
    unit: Option<usize>,
}

impl Trace {
    pub(super) fn new(traced: bool) -> Self {
        Self { lines: traced.then(Arc::default), unit: None }
    }

    /// The same trace, for lines about a disk.
    pub(super) fn of_unit(&self, unit: usize) -> Self {
        Self { unit: Some(unit), ..self.clone() }
    }

    pub(super) fn push(&self, line: impl FnOnce() -> String) {
        let Some(lines) = &self.lines else { return };
        let line = match self.unit {
            Some(unit) => format!("unit {unit}: {}", line()),
            None => line(),
        };
        lines.lock().unwrap().push(line);
    }

    /// Takes the lines.
    pub(super) fn take(&self) -> Vec<String> {
        self.lines
            .as_ref()
            .map_or_else(Vec::new, |lines| std::mem::take(&mut lines.lock().unwrap()))
    }
}
