//! `layer rebase`.

use std::path::Path;
use std::process::ExitCode;

use block::{RebasedLayer, rebase_layer};
use serde_json::json;

use super::copying::with_progress;
use super::shown::shown;
use crate::cmd::print;
use crate::config::human_size;

/// Shown below the options.
pub(super) const REBASE_HELP: &str = "\
The disk reads the same afterwards. Blocks that the new base has not, or has
with other content, are copied to the layer. If the base is the same one at
another path, nothing is copied, and the old path is not needed.

Examples:
  bulkhead layer rebase --base /new/debian.img vm1.layer  after a move
  bulkhead layer rebase --base debian-13.img vm1.layer    on another base
  bulkhead layer rebase --base debian.img vm2.layer       without the layers
                                                          in between";

/// Puts a layer over another base.
pub(super) fn rebase(path: &Path, base: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let rebased = with_progress("comparing", |progress| rebase_layer(path, base, progress))?;
    let RebasedLayer { is_same_base, copied } = rebased;
    print(&if json {
        let (path, base) = (path.display().to_string(), base.display().to_string());
        let answer = json!({
            "path": path,
            "base": base,
            "same_base": is_same_base,
            "copied_bytes": copied,
        });
        format!("{answer:#}\n")
    } else {
        let (path, base) = (shown(path), shown(base));
        if is_same_base {
            format!("{path}: its base is at {base}\n")
        } else {
            format!("{path}: over {base} now; {} were copied\n", human_size(copied))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
