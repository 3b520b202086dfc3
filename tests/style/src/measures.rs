//! The table of measurements, for production code and for test code.

use crate::Workspace;
use crate::facts::{Function, Type, Unsafe};
use crate::package::Package;
use crate::phrases::Phrases;
use crate::rules;
use crate::source::Source;

/// One cell of the table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figure {
    /// The value, for JSON.
    pub number: f64,
    /// The value as printed.
    pub text: String,
    /// Location of a maximum; otherwise empty.
    pub place: String,
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the measurement.
    pub name: &'static str,
    /// Its value for production code.
    pub production: Option<Figure>,
    /// Its value for test code.
    pub tests: Option<Figure>,
}

impl Figure {
    fn count(count: usize) -> Self {
        Self { number: whole(count), text: thousands(count), place: String::new() }
    }

    fn at(self, place: String) -> Self {
        Self { place, ..self }
    }

    fn decimal(number: f64) -> Self {
        let rounded = (number * 100.0).round() / 100.0;
        Self { number: rounded, text: format!("{number:.1}"), place: String::new() }
    }

    fn ratio(number: f64) -> Self {
        Self { text: format!("{number:.2}"), ..Self::decimal(number) }
    }

    fn percent(part: usize, all: usize) -> Self {
        let share = 100.0 * quotient(part, all);
        Self { text: format!("{share:.0} %"), ..Self::decimal(share) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of lines and items")]
fn whole(count: usize) -> f64 {
    count as f64
}

fn quotient(part: usize, all: usize) -> f64 {
    if all == 0 { 0.0 } else { whole(part) / whole(all) }
}

/// A number with thousands separators.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Computes all rows.
pub fn table<'a>(workspace: &'a Workspace, phrases: &Phrases) -> Vec<Row> {
    let production = Part { workspace, is_test: false };
    let tests = Part { workspace, is_test: true };
    let both = |name, measure: fn(Part<'a>) -> Figure| Row {
        name,
        production: Some(measure(production)),
        tests: Some(measure(tests)),
    };
    let code = |name, figure| Row { name, production: Some(figure), tests: None };
    let ratio = Figure::ratio(quotient(tests.lines(), production.lines()));
    vec![
        both("lines, blank ones left out", |part| Figure::count(part.lines())),
        both("largest file, lines", Part::largest_file),
        both("longest function, lines", Part::longest_function),
        both("function length, average", Part::average_function),
        both("function length, median", Part::median_function),
        both("fattest type, fields or variants", Part::fattest_type),
        both("unsafe blocks", |part| part.unsafes(&["block"])),
        both("unsafe fn, impl, trait, extern", |part| {
            part.unsafes(&["fn", "impl", "trait", "extern"])
        }),
        both("SAFETY comments", Part::safety_comments),
        both("files with unsafe", Part::files_with_unsafe),
        code("cfg attributes", production.conditions(|_| true)),
        code("cfg attributes, not for tests", production.conditions(|is_test| !is_test)),
        both("comment share of lines", |part| Figure::percent(part.comment_lines(), part.lines())),
        both("comments over 100 columns", Part::wide_comments),
        Row {
            name: "dialect phrases per 1,000 comment lines",
            production: Some(production.dialect(phrases)),
            tests: Some(tests.dialect(phrases)),
        },
        code("documented `pub` items", production.documented(true)),
        code("documented `pub(crate)` items", production.documented(false)),
        code("type names used twice", production.duplicates()),
        both("circles of files", |part| part.circles(false)),
        both("circles of folders", |part| part.circles(true)),
        Row { name: "lines of tests per line of code", production: None, tests: Some(ratio) },
        both("direct dependencies", Part::dependencies),
        code("packages in Cargo.lock", Figure::count(workspace.locked)),
    ]
}

/// Selects production code or test code.
#[derive(Clone, Copy)]
struct Part<'a> {
    workspace: &'a Workspace,
    is_test: bool,
}

impl<'a> Part<'a> {
    /// Files that belong to this part as a whole.
    fn files(self) -> impl Iterator<Item = &'a Source> {
        self.workspace.sources().filter(move |source| source.is_test == self.is_test)
    }

    /// Packages that belong to this part as a whole.
    fn packages(self) -> impl Iterator<Item = &'a Package> {
        let packages = self.workspace.packages.iter();
        packages.filter(move |package| package.is_for_tests() == self.is_test)
    }

    fn lines(self) -> usize {
        self.workspace.sources().map(|source| source.filled_lines(self.is_test)).sum()
    }

    fn largest_file(self) -> Figure {
        let file = self.files().max_by_key(|source| source.lines());
        let figure = |source: &Source| Figure::count(source.lines()).at(source.path.clone());
        file.map(figure).unwrap_or_default()
    }

    fn functions(self) -> impl Iterator<Item = (&'a Source, &'a Function)> {
        let sources = self.workspace.sources();
        let all =
            sources.flat_map(|source| source.facts.functions.iter().map(move |f| (source, f)));
        all.filter(move |(source, f)| (source.is_test || f.is_test) == self.is_test)
    }

    fn longest_function(self) -> Figure {
        let longest = self.functions().max_by_key(|(_, function)| function.length);
        let figure = |(source, function): (&Source, &Function)| {
            let place = format!("{}:{} fn {}", source.path, function.line, function.name);
            Figure::count(function.length).at(place)
        };
        longest.map(figure).unwrap_or_default()
    }

    fn average_function(self) -> Figure {
        let sum = self.functions().map(|(_, function)| function.length).sum();
        Figure::decimal(quotient(sum, self.functions().count()))
    }

    fn median_function(self) -> Figure {
        let mut lengths: Vec<_> = self.functions().map(|(_, function)| function.length).collect();
        lengths.sort_unstable();
        Figure::count(lengths.get(lengths.len() / 2).copied().unwrap_or(0))
    }

    fn fattest_type(self) -> Figure {
        let sources = self.workspace.sources();
        let all = sources.flat_map(|source| source.facts.types.iter().map(move |t| (source, t)));
        let own = all.filter(|(source, t)| (source.is_test || t.is_test) == self.is_test);
        let fattest = own.filter(|(_, t)| t.kind != "trait").max_by_key(|(_, t)| t.members);
        let figure = |(source, one): (&Source, &Type)| {
            let place = format!("{}:{} {} {}", source.path, one.line, one.kind, one.name);
            Figure::count(one.members).at(place)
        };
        fattest.map(figure).unwrap_or_default()
    }

    fn has(self, source: &Source, one: &Unsafe) -> bool {
        (source.is_test || one.is_test) == self.is_test
    }

    fn unsafes(self, kinds: &[&str]) -> Figure {
        let count = |source: &Source| {
            let unsafes = source.facts.unsafes.iter().filter(|one| kinds.contains(&one.kind));
            unsafes.filter(|one| self.has(source, one)).count()
        };
        Figure::count(self.workspace.sources().map(count).sum())
    }

    fn files_with_unsafe(self) -> Figure {
        let has_unsafe =
            |source: &&Source| source.facts.unsafes.iter().any(|one| self.has(source, one));
        let files = self.files().filter(has_unsafe).count();
        Figure { text: format!("{files} of {}", self.files().count()), ..Figure::count(files) }
    }

    fn safety_comments(self) -> Figure {
        let comments = self.comments().filter(|comment| comment.contains("SAFETY:"));
        Figure::count(comments.count())
    }

    fn comments(self) -> impl Iterator<Item = &'a str> {
        let lines = move |source: &'a Source| {
            let lines = source.comment_lines();
            let own = lines.filter(move |one| source.is_test_line(one.line) == self.is_test);
            own.map(|comment| comment.text.as_str())
        };
        self.workspace.sources().flat_map(lines)
    }

    fn comment_lines(self) -> usize {
        self.comments().count()
    }

    fn conditions(self, choose: impl Fn(bool) -> bool) -> Figure {
        let conditions = self.files().flat_map(|source| &source.facts.cfgs);
        Figure::count(conditions.filter(|condition| choose(condition.is_test)).count())
    }

    fn wide_comments(self) -> Figure {
        let wide = rules::words::wide_comments(self.workspace);
        let is_own = |violation: &&rules::Violation| {
            let mut sources = self.workspace.sources();
            sources.any(|source| {
                source.path == violation.path && source.is_test_line(violation.line) == self.is_test
            })
        };
        Figure::count(wide.iter().filter(is_own).count())
    }

    fn dialect(self, phrases: &Phrases) -> Figure {
        let mut count = 0;
        for source in self.workspace.sources() {
            for passage in source.comment_passages() {
                let own = phrases.find(&passage).filter(|(line, phrase)| {
                    phrase.is_measured && source.is_test_line(*line) == self.is_test
                });
                count += own.count();
            }
        }
        Figure::decimal(1000.0 * quotient(count, self.comment_lines()))
    }

    fn documented(self, everywhere: bool) -> Figure {
        let all = self.files().flat_map(|source| &source.facts.publics);
        let items: Vec<_> = all.filter(|item| item.is_everywhere == everywhere).collect();
        Figure::percent(items.iter().filter(|item| item.is_documented).count(), items.len())
    }

    fn duplicates(self) -> Figure {
        let mut names: Vec<_> = rules::names::duplicates(self.workspace)
            .into_iter()
            .map(|violation| (violation.owner, violation.text))
            .collect();
        names.sort();
        names.dedup();
        Figure::count(names.len())
    }

    fn circles(self, of_folders: bool) -> Figure {
        let circles = self.packages().flat_map(Package::circles);
        Figure::count(circles.filter(|circle| circle.folder.is_some() == of_folders).count())
    }

    fn dependencies(self) -> Figure {
        let own: Vec<_> = self.workspace.packages.iter().map(Package::name).collect();
        let all = self.packages().flat_map(|package| {
            let for_tests = package.manifest.dev_dependencies.iter().filter(|_| self.is_test);
            package.manifest.dependencies.iter().chain(for_tests)
        });
        let mut names: Vec<_> = all.filter(|name| !own.contains(&name.as_str())).collect();
        names.sort();
        names.dedup();
        Figure::count(names.len())
    }
}
