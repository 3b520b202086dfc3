//! The control socket of a scenario's monitor, reached by `bulkhead ctl` on its host.

use anyhow::Result;
use lab::Host;
use serde_json::Value;

fn socket(host: &Host) -> String {
    host.path("control.sock")
}

/// The `[control]` table of the configuration.
pub(crate) fn table(host: &Host) -> String {
    format!("[control]\nsocket = \"{}\"\n", socket(host))
}

/// Runs `bulkhead ctl` with `arguments` and returns its output.
pub(crate) fn ctl(host: &Host, arguments: &str) -> Result<String> {
    host.run(&format!("{} ctl {} {arguments}", host.path("bulkhead"), socket(host)))
}

/// The statistics of the disk `id`.
pub(crate) fn stats(host: &Host, id: &str) -> Result<Value> {
    Ok(serde_json::from_str(&ctl(host, &format!("stats {id} --json"))?)?)
}
