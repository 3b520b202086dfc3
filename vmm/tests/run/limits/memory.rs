//! Memory limits of cgroups.

use fixtures::needs;

use super::cgroup::Cgroup;
use super::end;
use crate::guest::{Machine, halt, power_off};

/// Without the check the kernel kills the program while it populates guest memory.
#[test]
fn guest_memory_above_the_cgroup_limit_is_refused() {
    if !needs::root() || !needs::kvm() {
        return;
    }
    let cgroup = Cgroup::with_memory(64 << 20);
    let machine = Machine::new(&[power_off(), halt()]);
    machine.configure("memory = \"128MiB\"", "");
    let (code, stderr) = end(cgroup.enter(&machine.command()));
    assert_eq!(code, Some(2), "{stderr}");
    let limit = cgroup.limit();
    let message = format!("exceeds the limit of the cgroup, 64 MiB in {}", limit.display());
    assert!(stderr.contains(&message), "{stderr}");
    assert!(stderr.contains("128 MiB requested, 9 MiB more for this program"), "{stderr}");
    assert!(stderr.contains("MemoryMax="), "{stderr}");
}

#[test]
fn guest_memory_below_the_cgroup_limit_runs() {
    if !needs::root() || !needs::kvm() {
        return;
    }
    // 128 MiB, page tables, and the program.
    let cgroup = Cgroup::with_memory(140 << 20);
    let machine = Machine::new(&[power_off(), halt()]);
    machine.configure("memory = \"128MiB\"", "");
    assert_eq!(end(cgroup.enter(&machine.command())), (Some(0), String::new()));
}
