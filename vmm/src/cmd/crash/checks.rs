//! `crash checks`.

use crash::host::BUILTIN_CHECKS;
use serde_json::json;

use crate::cmd::print;

/// Lists the checks that come with the program, or prints the script of one.
pub(super) fn checks(name: Option<&str>, json: bool) -> anyhow::Result<()> {
    if let Some(name) = name {
        let check = BUILTIN_CHECKS.iter().find(|check| check.name == name);
        let names = BUILTIN_CHECKS.map(|check| check.name).join(", ");
        let check = check.ok_or_else(|| anyhow::anyhow!("the checks are {names}"))?;
        return print(check.script);
    }
    let rows = BUILTIN_CHECKS.map(|check| check.description());
    if json {
        let checks = rows.map(|(call, text)| json!({ "call": call, "text": text }));
        return print(&format!("{}\n", json!(checks)));
    }
    let width = rows.iter().map(|(call, _)| call.len()).max().unwrap_or_default();
    let lines = rows.map(|(call, text)| format!("  {call:<width$}  {text}\n"));
    print(&format!("A check of `explore` finds these commands:\n{}", lines.concat()))
}
