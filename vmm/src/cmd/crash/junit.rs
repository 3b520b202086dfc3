//! The result of an exploration as JUnit XML, for the page of a CI. Pure.

use crash::{FoundState, Outcome, SearchEnd};

/// The XML of an outcome.
pub(super) fn junit(log: &str, outcome: &Outcome) -> String {
    let is_baseline = outcome.end == SearchEnd::Baseline;
    let (failing, flaky) = (outcome.failures.len(), outcome.flaky.len());
    let (failures, mut errors) = if is_baseline { (flaky, failing) } else { (failing + flaky, 0) };
    let (mut tests, mut skipped) = (failing + flaky, 0);
    let log = escape(log);
    let mut cases = String::new();
    for found in &outcome.failures {
        let kind = if is_baseline { "error" } else { "failure" };
        cases += &case(&log, found, kind, "");
    }
    for found in &outcome.flaky {
        cases += &case(&log, found, "failure", ", and passed when it was checked again");
    }
    if failing + flaky == 0 {
        let is_error = !outcome.is_complete() && outcome.points == 0;
        let result = is_error.then_some("<error message=\"no power cut was explored\"/>");
        cases += &plain_case(&log, "power cuts", result);
        (tests, errors) = (1, usize::from(is_error));
        if !outcome.is_complete() && !is_error {
            let result = "<skipped message=\"not all was explored\"/>";
            cases += &plain_case(&log, "the power cuts that are left", Some(result));
            (tests, skipped) = (2, 1);
        }
    }
    let seconds = outcome.elapsed.as_secs_f64();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n  \
         <testsuite name=\"bulkhead crash explore\" tests=\"{tests}\" failures=\"{failures}\" \
         errors=\"{errors}\" skipped=\"{skipped}\" time=\"{seconds:.3}\">\n    \
         <properties>\n      \
         <property name=\"checks\" value=\"{}\"/>\n      \
         <property name=\"pruned\" value=\"{}\"/>\n      \
         <property name=\"power_cuts\" value=\"{}\"/>\n      \
         <property name=\"complete\" value=\"{}\"/>\n    \
         </properties>\n{cases}  \
         </testsuite>\n\
         </testsuites>\n",
        outcome.checks,
        outcome.pruned,
        outcome.points,
        outcome.is_complete(),
    )
}

/// The XML of an exploration without a result.
pub(super) fn junit_of_error(log: &str, reason: &str) -> String {
    let result = format!("<error message=\"{}\"/>", escape(reason));
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites>\n  \
         <testsuite name=\"bulkhead crash explore\" tests=\"1\" failures=\"0\" errors=\"1\" \
         skipped=\"0\">\n{}  \
         </testsuite>\n\
         </testsuites>\n",
        plain_case(&escape(log), "exploration", Some(&result)),
    )
}

/// A case without a state, and its result if it did not pass.
fn plain_case(log: &str, name: &str, result: Option<&str>) -> String {
    let case = format!("    <testcase classname=\"{log}\" name=\"{name}\"");
    match result {
        None => case + "/>\n",
        Some(result) => format!("{case}>\n      {result}\n    </testcase>\n"),
    }
}

fn case(log: &str, found: &FoundState, kind: &str, addition: &str) -> String {
    let FoundState { name, failure, lost, .. } = found;
    let (end, output) = (escape(&failure.end), escape(&failure.output));
    let writes = if *lost == 1 { "write" } else { "writes" };
    format!(
        "    <testcase classname=\"{log}\" name=\"state {name}\">\n      \
         <{kind} message=\"{end}, with {lost} {writes} lost{addition}\">{output}</{kind}>\n    \
         </testcase>\n"
    )
}

/// Text as XML has it. Letters that XML 1.0 does not allow are replaced.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(letter),
            '\u{fffe}' | '\u{ffff}' => escaped.push(char::REPLACEMENT_CHARACTER),
            _ if letter.is_control() => escaped.push(char::REPLACEMENT_CHARACTER),
            _ => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crash::{Failure, StateName};

    use super::*;

    fn found(name: &str) -> FoundState {
        let name: StateName = name.parse().unwrap();
        let failure = Failure { end: "exit status 1".to_owned(), output: String::new() };
        FoundState { name, failure, lost: 0, shrunk_from: None }
    }

    fn outcome(end: SearchEnd, points: u64, failing: usize, flaky: usize) -> Outcome {
        Outcome {
            checks: 1,
            repeated_checks: 0,
            pruned: 0,
            points,
            end,
            failures: vec![found("1"); failing],
            flaky: vec![found("2"); flaky],
            elapsed: Duration::ZERO,
            has_marks: false,
        }
    }

    #[test]
    fn the_counts_are_those_of_the_elements() {
        use SearchEnd::{Baseline, Complete, Failure, Memory, States, Stopped, Time};
        // The end, the power cuts, the failing and the flaky states; then the elements.
        for (end, points, failing, flaky, expected) in [
            (Complete, 3, 0, 0, [1, 0, 0, 0]),
            (Baseline, 1, 1, 0, [1, 0, 1, 0]),
            (Baseline, 1, 0, 1, [1, 1, 0, 0]),
            (Failure, 2, 1, 0, [1, 1, 0, 0]),
            (Complete, 2, 2, 3, [5, 5, 0, 0]),
            (Time, 0, 0, 0, [1, 0, 1, 0]),
            (States, 0, 0, 0, [1, 0, 1, 0]),
            (Time, 2, 0, 0, [2, 0, 0, 1]),
            (States, 2, 0, 0, [2, 0, 0, 1]),
            (Memory, 2, 0, 0, [2, 0, 0, 1]),
            (Stopped, 2, 0, 0, [2, 0, 0, 1]),
            (Time, 2, 1, 1, [2, 2, 0, 0]),
        ] {
            let xml = junit("disk.log", &outcome(end, points, failing, flaky));
            let elements = ["<testcase ", "<failure ", "<error ", "<skipped "];
            let found = elements.map(|element| xml.matches(element).count());
            assert_eq!(found, expected, "{xml}");
            let [tests, failures, errors, skipped] = expected;
            let counts = format!(
                " tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" \
                 skipped=\"{skipped}\" "
            );
            assert!(xml.contains(&counts), "{xml}");
        }
    }

    #[test]
    fn text_of_a_check_cannot_break_the_xml() {
        assert_eq!(escape("a<b>&\"\x1b[1m\n"), "a&lt;b&gt;&amp;&quot;\u{fffd}[1m\n");
        assert_eq!(escape("]]>\u{ffff}"), "]]&gt;\u{fffd}");
    }
}
