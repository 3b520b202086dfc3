//! The direction of dependencies: vmm → devices → block; only vmm depends on KVM.

use super::Violation;
use crate::Workspace;
use crate::package::Package;

const FORBIDDEN: [(&str, &[&str]); 2] = [
    ("block", &["devices", "vmm", "kvm-ioctls", "kvm-bindings", "vm-memory"]),
    ("devices", &["vmm", "kvm-ioctls", "kvm-bindings"]),
];

/// Dependencies against that direction, and dependencies of production code on test crates.
pub fn reversed(workspace: &Workspace) -> Vec<Violation> {
    let for_tests: Vec<_> = workspace
        .packages
        .iter()
        .filter(|package| package.is_for_tests())
        .map(Package::name)
        .collect();
    let mut found = Vec::new();
    for package in workspace.production() {
        let forbidden = FORBIDDEN.iter().find(|(name, _)| *name == package.name());
        let forbidden = forbidden.map_or(&[][..], |(_, names)| names);
        for name in package.manifest.dependencies.iter().map(String::as_str) {
            if forbidden.contains(&name) || for_tests.contains(&name) {
                let path = format!("{}/Cargo.toml", package.folder);
                let text = format!("{} may not depend on {name}", package.name());
                found.push(Violation::new(package.name(), &path, 0, text));
            }
        }
    }
    found
}
