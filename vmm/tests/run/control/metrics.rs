//! The metrics page, parsed as Prometheus parses it.

use std::collections::{BTreeMap, BTreeSet};

use super::Rig;

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

/// Parses a page in the text format 0.0.4, strictly.
fn parse(page: &str) -> Samples {
    assert!(page.ends_with('\n'), "the last line has no newline");
    let (mut samples, mut families) = (Samples::new(), BTreeSet::new());
    let mut family = ("", "");
    let mut help = "";
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split(' ').next().unwrap();
            assert!(families.insert(help), "{help} is repeated");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap();
            assert_eq!(family.0, help, "a type without its help");
            assert!(["counter", "gauge", "histogram"].contains(&family.1), "{line}");
            assert_eq!(family.1 == "counter", family.0.ends_with("_total"), "{line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            check_name(name, family);
            assert!(
                samples.insert(name.to_owned(), value.parse().unwrap()).is_none(),
                "{name} twice"
            );
        }
    }
    samples
}

fn check_name(sample: &str, (family, kind): (&str, &str)) {
    let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
    let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{sample} is not of {family}"));
    let allowed: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
    assert!(allowed.contains(&suffix), "{sample}");
    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{sample}");
    for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once('=').unwrap();
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase()), "{sample}");
        assert!(value.len() > 2 && value.starts_with('"') && value.ends_with('"'), "{sample}");
    }
}

/// Each histogram is cumulative and ends at its count.
fn check_histograms(page: &str, samples: &Samples) {
    let mut before: Option<(String, f64, f64)> = None;
    let mut ends = 0;
    for line in page.lines().filter(|line| line.contains("_bucket{")) {
        let (name, count) = line.rsplit_once(' ').unwrap();
        let (series, le) = name.split_once("le=\"").unwrap();
        let le: f64 = le.trim_end_matches("\"}").replace("+Inf", "inf").parse().unwrap();
        let count: f64 = count.parse().unwrap();
        if let Some((last, end, below)) = &before
            && last == series
        {
            assert!(*end < le && *below <= count, "{line}");
        }
        if le.is_infinite() {
            let total =
                series.replace("_bucket{", "_count{").trim_end_matches(',').to_owned() + "}";
            assert_eq!(samples.get(&total), Some(&count), "{total}");
            ends += 1;
        }
        before = Some((series.to_owned(), le, count));
    }
    assert_eq!(ends, 2 * (2 + 5), "wait, completion and five kinds of two disks");
}

#[test]
fn the_page_is_well_formed_and_correct() {
    let rig = Rig::with_disks();
    let answer = rig.get("/metrics");
    assert!(answer.head.contains("Content-Type: text/plain; version=0.0.4"), "{}", answer.head);
    let samples = parse(&answer.body);
    check_histograms(&answer.body, &samples);
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(value("bulkhead_vcpus"), 2.0);
    assert_eq!(value("bulkhead_paused"), 0.0);
    assert_eq!(value("bulkhead_disk_size_bytes{disk=\"root\"}"), 4_194_304.0);
    assert_eq!(value("bulkhead_disk_unsafe{disk=\"fast\"}"), 1.0);
    assert_eq!(value("bulkhead_disk_unsafe{disk=\"root\"}"), 0.0);
    assert_eq!(value("bulkhead_disk_requests_total{disk=\"root\",queue=\"1\",kind=\"read\"}"), 0.0);

    assert_eq!(rig.post("/v1/pause", "").status, 200);
    assert_eq!(parse(&rig.get("/metrics").body)["bulkhead_paused"], 1.0);
}
