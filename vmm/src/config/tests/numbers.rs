//! Sizes and times.

use super::*;

fn memory(value: &str) -> String {
    report(&format!("[machine]\nmemory={value}\n[kernel]\nimage='k'"))
}

#[test]
fn valid_sizes() {
    for good in ["'32MiB'", "'32 MiB'", "'1TiB'", "'32768KiB'"] {
        assert_eq!(memory(good), "");
    }
}

#[test]
fn sizes_without_or_with_unknown_units() {
    let bad = ["2048", "2147483648", "'2048'", "'2GB'", "'2G'", "'2gib'", "0"];
    assert_data_eq!(
        bad.map(memory).concat(),
        str![[r#"
`memory` has no unit
  2048  <- a bare number
  write a unit, such as "2048MiB"
`memory` has no unit
  2147483648  <- a bare number
  write a unit, such as "2GiB"
`memory` has no unit
  '2048'  <- a bare number
  write a unit, such as "2048MiB"
`memory` has an unknown unit
  '2GB'  <- `GB` is not `GiB`
  write "2GiB"; units are powers of 1024
`memory` has an unknown unit
  '2G'  <- `G` is not `GiB`
  write "2GiB"; units are powers of 1024
`memory` has an unknown unit
  '2gib'  <- `gib` is not `GiB`
  write "2GiB"; units are powers of 1024
`memory` has no unit
  0  <- a bare number
  write a unit, such as "512MiB"

"#]]
    );
}

#[test]
fn values_that_are_not_sizes() {
    let bad = ["''", "'GiB'", "'1.5GiB'", "'-1GiB'", "'1XiB'", "'ééé'"];
    assert_data_eq!(
        bad.map(memory).concat(),
        str![[r#"
`memory` is not a size
  ''  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` has no number
  'GiB'  <- a unit alone
  write a size such as "512MiB"
`memory` is not a size
  '1.5GiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  '-1GiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  '1XiB'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB
`memory` is not a size
  'ééé'  <- expected a whole number and a unit
  write a size such as "512MiB" or "2GiB"; the units are KiB, MiB, GiB and TiB

"#]]
    );
}

#[test]
fn memory_sizes_out_of_range() {
    let bad = ["'99999999TiB'", "'99999999999999999999GiB'", "'30MiB'", "'33MiB'"];
    assert_data_eq!(
        bad.map(memory).concat(),
        str![[r#"
`memory` is too large
  '99999999TiB'  <- does not fit in 64 bits
  write a size such as "512MiB"
`memory` is too large
  '99999999999999999999GiB'  <- does not fit in 64 bits
  write a size such as "512MiB"
`memory` is too small to boot Linux
  '30MiB'  <- 30 MiB
  write "32MiB" or more
`memory` is not a multiple of 2 MiB
  '33MiB'  <- 33 MiB
  write "34MiB" or more

"#]]
    );
}

#[test]
fn times() {
    let grace = |value| {
        report(&format!("[machine]\nmemory='64MiB'\nshutdown_grace={value}\n[kernel]\nimage='k'"))
    };
    for good in ["'0s'", "'2m'", "'1500ms'"] {
        assert_eq!(grace(good), "");
    }
    assert_data_eq!(
        ["30", "'30'", "'30 sec'", "'s'", "'99999999999999999999s'"].map(grace).concat(),
        str![[r#"
`shutdown_grace` has no unit
  30  <- a bare number
  write a unit, such as "30s"
`shutdown_grace` has no unit
  '30'  <- a bare number
  write a unit, such as "30s"
`shutdown_grace` is not a time
  '30 sec'  <- expected a whole number and a unit
  write a time such as "30s"; the units are ms, s and m
`shutdown_grace` has no number
  's'  <- a unit alone
  write a time such as "30s"
`shutdown_grace` is too large
  '99999999999999999999s'  <- does not fit in 64 bits
  write a time such as "30s"

"#]]
    );
}
