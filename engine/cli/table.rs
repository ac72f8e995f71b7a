//! Markdown tables that are readable as plain text.

/// A table with a line of names above its rows.
pub struct Table {
    names: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns an empty table; a name that begins with `>` makes a column of numbers, aligned right.
    pub fn new<const N: usize>(names: [&str; N]) -> Self {
        Self { names: names.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        assert_eq!(row.len(), self.names.len(), "a row has a cell for each column");
        self.rows.push(row.to_vec());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.names.iter().map(|name| name.trim_start_matches('>')).collect();
        let right: Vec<bool> = self.names.iter().map(|name| name.starts_with('>')).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([names[column].chars().count(), 3]).max().expect("three at least")
        };
        let widths: Vec<usize> = (0..names.len()).map(width).collect();
        let mut line = |cells: &[&str]| {
            for ((cell, width), right) in cells.iter().zip(&widths).zip(&right) {
                if *right { write!(f, "| {cell:>width$} ")? } else { write!(f, "| {cell:<width$} ")? }
            }
            writeln!(f, "|")
        };
        line(&names)?;
        let rule = |(width, right): (&usize, &bool)| {
            if *right { format!("{}:", "-".repeat(width - 1)) } else { "-".repeat(*width) }
        };
        let rules: Vec<String> = widths.iter().zip(&right).map(rule).collect();
        line(&rules.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.rows.iter().try_for_each(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["model", ">tok/s"]);
        table.push(["demo".into(), "12.5 ± 0.1".into()]);
        table.push(["synthetic:270M".into(), "3".into()]);
        let expected = "\
| model          |      tok/s |
| -------------- | ---------: |
| demo           | 12.5 ± 0.1 |
| synthetic:270M |          3 |
";
        assert_eq!(table.to_string(), expected);
    }
}
