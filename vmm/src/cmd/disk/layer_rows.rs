//! The disk of a layer, whose file `bulkhead disk inspect` shows. Pure.

use block::{BaseFacts, FlushPromise, LevelHead, shell_path};
use serde_json::{Value, json};

use super::facts::LayerFacts;
use crate::config::human_size;
use crate::sanitize::sanitize;

/// Rows of the inspection: what the layer stands on, and what is wrong with that.
pub(super) fn text(layer: &LayerFacts) -> Vec<(&'static str, String)> {
    let Some((top, below)) = layer.levels.split_first() else { return Vec::new() };
    let names: Vec<_> = below.iter().map(|level| level.path.display().to_string()).collect();
    let (size, names, word) = (human_size(top.size), names.join(", "), shell_path(&top.path));
    let text = format!("a disk of {size} over {names}; see `bulkhead layer info {word}`");
    let changed = below.iter().filter_map(changed).map(|text| ("its base", text));
    let lost = problems(layer).map(|text| ("its base", text));
    std::iter::once(("layer", sanitize(&text))).chain(changed).chain(lost).collect()
}

fn changed(level: &LevelHead) -> Option<String> {
    let change = level.change.as_ref()?;
    let text = format!("{} has changed: {}", level.path.display(), change.what);
    Some(sanitize(&text))
}

/// The bases that a power cut empties.
fn problems(layer: &LayerFacts) -> impl Iterator<Item = String> {
    layer.bases.iter().flat_map(|BaseFacts { path, store }| {
        let problems = store.flush_problems.iter();
        let lost = problems.filter(|problem| problem.flush == FlushPromise::NotKept);
        lost.map(|problem| {
            let (path, storey, what) = (path.display(), &problem.storey, &problem.what);
            sanitize(&format!("{path} is lost at a power cut: {storey} {what}"))
        })
    })
}

/// The same for programs.
pub(super) fn json(layer: &LayerFacts) -> Value {
    let level = |level: &LevelHead| {
        json!({
            "path": level.path.display().to_string(),
            "size_bytes": level.size,
            "change": level.change.as_ref().map(|change| &change.what),
        })
    };
    json!({
        "levels": layer.levels.iter().map(level).collect::<Value>(),
        "problems": problems(layer).collect::<Value>(),
    })
}
