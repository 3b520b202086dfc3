//! Tables in text. Pure.

use clap::builder::styling::Style;

const DIM: Style = Style::new().dimmed();

/// A table whose columns are as wide as their widest cell.
pub(crate) struct TextTable {
    rows: Vec<Vec<String>>,
    /// Whether each column is aligned to the right, as numbers are.
    align_right: &'static [bool],
}

impl TextTable {
    pub(crate) fn new(heading: &[&str], align_right: &'static [bool]) -> Self {
        Self { rows: vec![heading.iter().map(ToString::to_string).collect()], align_right }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut out = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = width(column);
                if self.align_right.get(column) == Some(&true) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            let line = format!("  {}", cells.collect::<Vec<_>>().join("  "));
            let line = line.trim_end();
            out += &if index == 0 { format!("{DIM}{line}{DIM:#}\n") } else { format!("{line}\n") };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = TextTable::new(&["A", "N"], &[false, true]);
        table.row(vec!["long".into(), "1".into()]);
        table.row(vec!["ä".into(), "100".into()]);
        let text = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(text, "  A       N\n  long    1\n  ä     100\n");
    }
}
