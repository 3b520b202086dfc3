//! Output of the measurements and violations, as aligned text and as JSON.

use serde_json::{Map, Value, json};
use style::measures::{Figure, Row};
use style::rules::Violation;

const NONE: &str = "–";

/// The table in aligned columns, followed by the locations.
pub(crate) fn text(rows: &[Row]) -> String {
    let cell = |figure: &Option<Figure>| {
        figure.as_ref().map_or_else(|| NONE.to_owned(), |figure| figure.text.clone())
    };
    let mut cells = vec![[String::new(), "production".to_owned(), "tests".to_owned()]];
    cells.extend(
        rows.iter().map(|row| [row.name.to_owned(), cell(&row.production), cell(&row.tests)]),
    );
    let width = |column: usize| {
        let widths =
            cells.iter().filter_map(|row| row.get(column).map(|cell| cell.chars().count()));
        widths.max().unwrap_or(0)
    };
    let (name, production, tests) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [first, second, third] in &cells {
        text.push_str(&format!("{first:name$}  {second:>production$}  {third:>tests$}\n"));
    }
    text.push('\n');
    for row in rows {
        for figure in [&row.production, &row.tests].into_iter().flatten() {
            if !figure.place.is_empty() {
                text.push_str(&format!("{:name$}  {}\n", row.name, figure.place));
            }
        }
    }
    text
}

/// The table as an object with a member for each row.
pub(crate) fn json(rows: &[Row]) -> String {
    let figure = |figure: &Option<Figure>| match figure {
        Some(Figure { number, place, .. }) if place.is_empty() => json!(number),
        Some(Figure { number, place, .. }) => json!({ "value": number, "place": place }),
        None => Value::Null,
    };
    let row = |row: &Row| {
        let figures = json!({ "production": figure(&row.production), "tests": figure(&row.tests) });
        (row.name.to_owned(), figures)
    };
    pretty(&Value::Object(rows.iter().map(row).collect::<Map<_, _>>()))
}

/// The violations as an array of objects.
pub(crate) fn json_list(violations: &[Violation]) -> String {
    let violation = |one: &Violation| json!({ "package": one.owner, "path": one.path, "line": one.line, "text": one.text });
    pretty(&Value::Array(violations.iter().map(violation).collect()))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Row; 2] {
        let figure = |number: f64, text: &str, place: &str| {
            Some(Figure { number, text: text.to_owned(), place: place.to_owned() })
        };
        [
            Row { name: "lines", production: figure(1200.0, "1,200", ""), tests: None },
            Row {
                name: "largest",
                production: figure(9.0, "9", "a.rs"),
                tests: figure(3.0, "3", ""),
            },
        ]
    }

    #[test]
    fn columns_are_aligned_and_places_named() {
        let expected = "         production  tests\n\
                        lines         1,200      –\n\
                        largest           9      3\n\
                        \n\
                        largest  a.rs\n";
        assert_eq!(text(&rows()), expected);
    }

    #[test]
    fn json_has_a_member_for_each_row() {
        let table: Value = serde_json::from_str(&json(&rows())).unwrap();
        assert_eq!(table["lines"]["production"], 1200.0);
        assert_eq!(table["lines"]["tests"], Value::Null);
        assert_eq!(table["largest"]["production"]["place"], "a.rs");
    }
}
