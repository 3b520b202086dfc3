//! `layer flatten`.

use std::path::Path;
use std::process::ExitCode;

use block::{FlattenedImage, flatten_layer};
use serde_json::json;

use super::copying::with_progress;
use super::shown::shown;
use crate::cmd::print;
use crate::config::human_size;

/// Shown below the options.
pub(super) const FLATTEN_HELP: &str = "\
The image needs no other file. Zeroes take no space in it.

Example:
  bulkhead layer flatten vm1.layer vm1.img";

/// Makes a raw image of a layer.
pub(super) fn flatten(path: &Path, image: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let made = with_progress("copying", |progress| flatten_layer(path, image, progress))?;
    let FlattenedImage { size, copied } = made;
    print(&if json {
        let (path, image) = (path.display().to_string(), image.display().to_string());
        let answer =
            json!({ "path": path, "image": image, "size_bytes": size, "copied_bytes": copied });
        format!("{answer:#}\n")
    } else {
        let (size, copied) = (human_size(size), human_size(copied));
        format!("{}: raw image of {size}, of which {copied} were copied\n", shown(image))
    })?;
    Ok(ExitCode::SUCCESS)
}
