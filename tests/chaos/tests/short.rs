//! A run short enough for each test run.

use std::time::Duration;

use chaos::{Plan, run};
use fixtures::needs;

#[test]
fn nothing_is_lost_or_hung_or_leaked() {
    if !needs::root() || !needs::kvm() {
        return;
    }
    let plan = Plan { seed: 10, length: Duration::from_secs(45), prints: true };
    let report = run(plan).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{report}");
}
