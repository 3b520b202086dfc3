//! `layer create`.

use std::path::Path;
use std::process::ExitCode;

use block::{CreatedLayer, create_layer};
use serde_json::json;

use super::shown::shown;
use crate::cmd::print;
use crate::config::human_size;

/// Makes a layer and prints it.
pub(super) fn create(
    path: &Path,
    base: &Path,
    size: Option<u64>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let made = create_layer(path, base, size).map_err(|error| anyhow::anyhow!("{error}"))?;
    print(&created(path, base, &made, json))?;
    Ok(ExitCode::SUCCESS)
}

fn created(path: &Path, base: &Path, made: &CreatedLayer, json: bool) -> String {
    let CreatedLayer { uuid, size } = made;
    if json {
        let (path, base) = (path.display().to_string(), base.display().to_string());
        let uuid = uuid.to_string();
        return format!(
            "{:#}\n",
            json!({ "path": path, "base": base, "uuid": uuid, "size_bytes": size })
        );
    }
    format!("{}: layer of {} over {}\n", shown(path), human_size(*size), shown(base))
}
