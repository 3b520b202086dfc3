//! Any text gets a report, and none causes a panic.

use super::*;

/// Text that is mostly valid TOML, so that the later checks see unusual values.
fn almost_config() -> impl Strategy<Value = String> {
    let header = prop::sample::select(vec![
        "[machine]",
        "[kernel]",
        "[[disk]]",
        "[[net]]",
        "[console]",
        "[disk]",
        "[[machine]]",
        "[é]",
    ]);
    let key = prop::sample::select(vec![
        "vcpus",
        "memory",
        "shutdown_grace",
        "image",
        "cmdline",
        "id",
        "path",
        "cache",
        "readonly",
        "queues",
        "serial",
        "block_size",
        "engine",
        "on_enospc",
        "hold_deadline",
        "discard",
        "detect_zeroes",
        "format",
        "record",
        "record_limit",
        "thin",
        "soft_limit",
        "tap",
        "mac",
        "file",
        "socket",
        "mode",
        "\"\"",
        "x.y",
        "é",
    ]);
    let value = prop_oneof![
        "[0-9]{1,30}([KMGT]?i?B|s|ms)?".prop_map(|text| format!("\"{text}\"")),
        "\\PC{0,40}".prop_map(|text| format!("{text:?}")),
        "[0-9]{1,30}",
        Just("true".to_owned()),
        Just("[1, {a = 2}]".to_owned()),
        Just("1979-05-27".to_owned()),
        Just("'02:00:00:00:00:01'".to_owned()),
        Just("\"\"\"\r\n\t\u{1f980}\"\"\"".to_owned()),
    ];
    let entry = (key, value).prop_map(|(key, value)| format!("{key} = {value}"));
    let table = (header, prop::collection::vec(entry, 0..4))
        .prop_map(|(header, entries)| format!("{header}\n{}\n", entries.join("\n")));
    prop::collection::vec(table, 0..6).prop_map(|tables| tables.concat())
}

proptest! {
    /// Nothing panics, each span lies in the text, and a source without an error is complete.
    #[test]
    fn any_text_gets_a_report(text in prop_oneof![any::<String>(), almost_config(), "[\\[\\]={}\"'#a\r\n\u{feff}é]{0,60}"]) {
        let (source, diagnostics) = parse::parse_machine(&text, Path::new(""));
        for diagnostic in &diagnostics {
            let primary = match &diagnostic.location {
                Location::Text(label) => Some(label),
                Location::File | Location::Host => None,
            };
            for label in primary.into_iter().chain(diagnostic.related.as_deref()) {
                prop_assert!(text.get(label.span.clone()).is_some(), "{label:?}");
            }
        }
        let failed = diagnostics.iter().any(|d| d.severity == Severity::Error);
        prop_assert_eq!(failed, source.and_then(build::machine).is_none());
        let report = Report::new("vm.toml".to_owned(), text, diagnostics);
        let shown = report.to_string();
        prop_assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
        report.to_json();
    }

    #[test]
    fn an_exact_size_reads_back(bytes in (1_u64..1 << 30).prop_map(|kib| kib << 10)) {
        let text = size::exact_size(bytes);
        let read = size::size(&toml::de::DeValue::String(text.into()));
        prop_assert_eq!(read, Ok(bytes));
    }
}
